//! Work of streams and graphs, and how it is done. With `abi` and `arguments` this is where host memory is touched.

#![expect(unsafe_code, reason = "copies from and to the program's memory, and calls of its functions")]

use std::{
    alloc::{self, Layout},
    sync::Arc,
};

use lathe_emulator::{Launch, MemoryError};

use crate::{codes::Code, context::Core, module::Function, report, state::Gpu};

/// A range of the program's memory.
#[derive(Clone, Copy, Debug)]
pub struct HostRange {
    /// First byte.
    pub address: usize,
    /// Length.
    pub bytes: usize,
}

impl HostRange {
    /// The bytes as they are now.
    pub fn read(self) -> Vec<u8> {
        let mut bytes = vec![0; self.bytes];
        if self.bytes > 0 {
            // SAFETY: the program passed the range to a function that is documented to read it, now or, where the copy is
            // asynchronous and the memory page-locked, until the stream has got there.
            unsafe { std::ptr::copy_nonoverlapping(self.address as *const u8, bytes.as_mut_ptr(), self.bytes) };
        }
        bytes
    }

    /// Replaces the bytes.
    pub fn write(self, bytes: &[u8]) {
        let count = bytes.len().min(self.bytes);
        if count > 0 {
            // SAFETY: as above, for a function that is documented to write the range; no more than its length is written.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.address as *mut u8, count) };
        }
    }
}

/// Alignment of page-locked memory.
const PAGE: usize = 4096;

/// Allocates page-locked memory: zeroed, aligned to pages.
pub fn allocate_host(bytes: usize) -> Option<usize> {
    let layout = Layout::from_size_align(bytes.max(1), PAGE).ok()?;
    // SAFETY: the layout has a size.
    let start = unsafe { alloc::alloc_zeroed(layout) };
    (!start.is_null()).then_some(start as usize)
}

/// Frees what [`allocate_host`] gave for so many bytes. The caller has taken it out of the table of such memory, so that it
/// is freed once.
pub fn free_host(address: usize, bytes: usize) {
    if let Ok(layout) = Layout::from_size_align(bytes.max(1), PAGE) {
        // SAFETY: the address came from `allocate_host` with this layout, and the table held it once.
        unsafe { alloc::dealloc(address as *mut u8, layout) };
    }
}

/// Bytes that go to the device.
#[derive(Clone, Debug)]
pub enum Bytes {
    /// Read when the program made the call.
    Held(Arc<[u8]>),
    /// To be read when the stream gets there.
    Host(HostRange),
}

/// A launch of a kernel.
#[derive(Clone, Debug)]
pub struct KernelCall {
    /// The kernel.
    pub function: Arc<Function>,
    /// CTAs.
    pub grid: [u32; 3],
    /// Threads of a CTA.
    pub block: [u32; 3],
    /// Dynamic shared memory.
    pub shared_bytes: u32,
    /// The parameters, laid out as the kernel declares them.
    pub params: Vec<u8>,
}

/// Work of a stream.
#[derive(Clone, Debug)]
pub enum Work {
    /// A mark only.
    Nothing,
    /// A kernel.
    Kernel(KernelCall),
    /// To the device.
    Upload { from: Bytes, to: u64 },
    /// From the device.
    Download { from: u64, to: HostRange },
    /// Within the device.
    Copy { from: u64, to: u64, bytes: u64 },
    /// From one device to another.
    Across { source: Arc<Gpu>, from: u64, target: Arc<Gpu>, to: u64, bytes: u64 },
    /// Within the host.
    Host { from: HostRange, to: HostRange },
    /// An element over and over.
    Fill { address: u64, element: Vec<u8>, count: u64 },
    /// A function `void (*)(void *)` of the program.
    Call { function: usize, data: usize },
    /// A function `void (*)(CUstream, CUresult, void *)` of the program.
    Callback { function: usize, stream: usize, data: usize },
    /// Frees device memory.
    Free(u64),
    /// One after the other.
    Many(Vec<Work>),
}

impl Work {
    /// Whether a graph can have it as a node.
    pub fn is_capturable(&self) -> bool {
        !matches!(self, Work::Callback { .. } | Work::Free(_))
    }

    /// Does it, unless an error has ended the context.
    pub fn run(&self, core: &Core) {
        if let Work::Callback { function, stream, data } = *self {
            // SAFETY: the program passed the function with this signature, and the data for it (`cuStreamAddCallback`).
            let function: extern "C" fn(usize, u32, usize) = unsafe { std::mem::transmute(function) };
            function(stream, core.lost().unwrap_or(Code::SUCCESS).0, data);
            return;
        }
        if core.lost().is_some() {
            return;
        }
        let memory = &core.gpu.device.memory;
        let copied = match self {
            Work::Nothing | Work::Callback { .. } => Ok(()),
            Work::Kernel(call) => {
                call.run(core);
                Ok(())
            }
            Work::Upload { from: Bytes::Held(bytes), to } => memory.write(*to, bytes),
            Work::Upload { from: Bytes::Host(range), to } => memory.write(*to, &range.read()),
            Work::Download { from, to } => {
                let mut bytes = vec![0; to.bytes];
                memory.read(*from, &mut bytes).map(|()| to.write(&bytes))
            }
            Work::Copy { from, to, bytes } => memory.copy(*to, *from, *bytes),
            Work::Across { source, from, target, to, bytes } => {
                let mut held = vec![0; *bytes as usize];
                let read = source.device.memory.read(*from, &mut held);
                read.and_then(|()| target.device.memory.write(*to, &held))
            }
            Work::Host { from, to } => {
                to.write(&from.read());
                Ok(())
            }
            Work::Fill { address, element, count } => memory.fill(*address, element, *count),
            &Work::Call { function, data } => {
                // SAFETY: the program passed the function with this signature, and the data for it (`cuLaunchHostFunc`).
                let function: extern "C" fn(usize) = unsafe { std::mem::transmute(function) };
                function(data);
                Ok(())
            }
            Work::Free(address) => memory.free(*address),
            Work::Many(list) => {
                for work in list {
                    work.run(core);
                }
                Ok(())
            }
        };
        copied.unwrap_or_else(|error: MemoryError| {
            report::tell(&format!("a copy or free in a stream: {error}"));
            core.lose(Code::ERROR_ILLEGAL_ADDRESS, &error.to_string());
        });
    }
}

impl KernelCall {
    /// The launch as the emulator takes it.
    pub fn launch<'a>(&'a self, core: &Core) -> Launch<'a> {
        let &KernelCall { grid, block, shared_bytes, ref params, .. } = self;
        Launch { grid, block, shared_bytes, params, options: core.options.clone() }
    }

    fn run(&self, core: &Core) {
        let number = core.gpu.kernels.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
        if core.lose_at == Some(number) {
            let why =
                format!("the device is lost at kernel {number}, {}, as LATHE_EMULATE_LOSE asks", self.function.name);
            report::tell(&why);
            core.lose(Code::ERROR_ECC_UNCORRECTABLE, &why);
            return;
        }
        let module = &self.function.module;
        if let Err(fault) = module.emulated.launch(&core.gpu.device, &self.function.name, &self.launch(core)) {
            report::fault(&fault, &module.ptx);
            core.lose(report::code_of(&fault), &fault.to_string());
        }
    }
}
