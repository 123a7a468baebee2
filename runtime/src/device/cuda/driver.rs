//! The CUDA driver, loaded when the device is: contexts, memory, modules, streams and events that free themselves.
//!
//! cudarc panics where the library or one of its functions is missing, so [`Context::open`] looks for the library first,
//! and nothing here is called before it has succeeded. Every handle keeps its context alive and makes it current where the
//! driver asks for that.

#![expect(unsafe_code, reason = "calls of the driver's C functions")]

use std::{
    ffi::{CString, c_void},
    fmt,
    ops::Range,
    ptr,
    sync::Arc,
};

use cudarc::driver::{result, sys};

use crate::error::{Error, Result};

/// A device's primary context.
pub struct Context {
    device: sys::CUdevice,
    raw: sys::CUcontext,
    /// What the driver calls the device.
    pub name: String,
    /// Compute capability, times ten: 80 for `sm_80`.
    pub capability: u32,
    /// Bytes of memory that the threads of a block may share.
    pub shared_bytes: u64,
}

// SAFETY: the driver's handles may be used from any thread on which the context is current.
unsafe impl Send for Context {}
// SAFETY: as above; the driver locks where it must.
unsafe impl Sync for Context {}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (sm_{})", self.name, self.capability)
    }
}

/// Turns the driver's answer into a result that names the call.
fn ask<T>(call: &'static str, answer: Result<T, result::DriverError>) -> Result<T> {
    answer.map_err(|error| {
        let name = error.error_name().map_or_else(|_| format!("{:?}", error.0), |name| name.to_string_lossy().into());
        Error::Driver { call, error: name }
    })
}

/// That the driver does not take this PTX.
fn old_driver(ptx: &str) -> Error {
    let version = ptx.lines().find_map(|line| line.trim().strip_prefix(".version"));
    let mut driver = 0;
    // SAFETY: the pointer is to a value; a driver that does not answer leaves it as it is.
    let _ = unsafe { sys::cuDriverGetVersion(&raw mut driver) };
    let driver = format!("{}.{}", driver / 1000, driver % 1000 / 10);
    Error::OldDriver { ptx: version.unwrap_or_default().trim().to_owned(), driver }
}

impl Context {
    /// The context of device `ordinal`, counted from 0.
    pub fn open(ordinal: usize) -> Result<Arc<Context>> {
        // SAFETY: this only tries to load the library.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::NoDriver);
        }
        // A driver without a device, or with all of them hidden, does not even begin.
        match result::init() {
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => {
                return Err(Error::NoGpu { ordinal, found: 0 });
            }
            answer => ask("cuInit", answer)?,
        }
        let found = ask("cuDeviceGetCount", result::device::get_count())?;
        let index = i32::try_from(ordinal).ok().filter(|&index| index < found);
        let index = index.ok_or(Error::NoGpu { ordinal, found: found.max(0) as usize })?;
        let device = ask("cuDeviceGet", result::device::get(index))?;
        let name = ask("cuDeviceGetName", result::device::get_name(device))?;
        let attribute = |attribute| {
            // SAFETY: the device is one that the driver gave.
            ask("cuDeviceGetAttribute", unsafe { result::device::get_attribute(device, attribute) })
        };
        let major = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let shared = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK)?;
        // SAFETY: the device is one that the driver gave; the context is released once, when this is dropped.
        let raw = ask("cuDevicePrimaryCtxRetain", unsafe { result::primary_ctx::retain(device) })?;
        let capability = (major * 10 + minor) as u32;
        let shared_bytes = u64::try_from(shared).unwrap_or(0);
        Ok(Arc::new(Context { device, raw, name, capability, shared_bytes }))
    }

    /// Bytes of the device's memory that nobody has taken.
    pub fn free_bytes(&self) -> Result<u64> {
        self.enter()?;
        let (free, _) = ask("cuMemGetInfo", result::mem_get_info())?;
        Ok(free as u64)
    }

    /// Makes the context current on this thread.
    pub fn enter(&self) -> Result<()> {
        // SAFETY: the context is retained as long as this lives.
        ask("cuCtxSetCurrent", unsafe { result::ctx::set_current(self.raw) })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: it was retained once, and nothing that needs it is left. What a driver says that is going away is of no
        // use to anyone.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// Memory of the device.
#[derive(Debug)]
pub struct Memory {
    context: Arc<Context>,
    address: u64,
    bytes: usize,
}

impl Memory {
    /// Allocates memory, at least 1 byte, aligned to 256.
    pub fn new(context: &Arc<Context>, what: &'static str, bytes: usize) -> Result<Memory> {
        context.enter()?;
        // SAFETY: the memory is freed once, when this is dropped.
        let address = unsafe { result::malloc_sync(bytes.max(1)) }.map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::DeviceMemory { what, bytes },
            _ => Error::Driver { call: "cuMemAlloc", error: format!("{:?}", error.0) },
        })?;
        Ok(Memory { context: Arc::clone(context), address, bytes: bytes.max(1) })
    }

    /// Where it starts on the device.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// How long it is.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies bytes to the start of the memory and waits until they are there.
    pub fn fill(&self, from: &[u8]) -> Result<()> {
        assert!(from.len() <= self.bytes, "{} bytes do not fit {}", from.len(), self.bytes);
        self.context.enter()?;
        // SAFETY: the range lies inside the memory; the call returns when the bytes have been read.
        ask("cuMemcpyHtoD", unsafe { result::memcpy_htod_sync(self.address, from) })
    }

    /// Sets every byte and waits.
    pub fn set(&self, byte: u8) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the range is the memory.
        ask("cuMemsetD8", unsafe { result::memset_d8_sync(self.address, byte, self.bytes) })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let entered = self.context.enter();
        // SAFETY: the memory is ours and freed once; the driver waits for work that uses it.
        let _ = entered.map(|()| unsafe { result::free_sync(self.address) });
    }
}

/// Memory of the host that the device copies from and to on its own, as 32-bit words.
#[derive(Debug)]
pub struct Pinned {
    context: Arc<Context>,
    start: *mut u32,
    words: usize,
}

// SAFETY: the memory belongs to this value alone; see `Stream` for the copies.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Allocates zeroed memory, at least one word.
    pub fn new(context: &Arc<Context>, words: usize) -> Result<Pinned> {
        context.enter()?;
        let words = words.max(1);
        // SAFETY: the memory is freed once, when this is dropped.
        let start = ask("cuMemHostAlloc", unsafe { result::malloc_host(words * size_of::<u32>(), 0) })?.cast::<u32>();
        // SAFETY: the range is the memory, which the driver aligns to pages.
        unsafe { start.write_bytes(0, words) };
        Ok(Pinned { context: Arc::clone(context), start, words })
    }

    /// The words. No copy that writes or reads them may be under way.
    pub fn words(&mut self) -> &mut [u32] {
        // SAFETY: the memory is initialized, ours, and borrowed for as long as the slice.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.words) }
    }

    /// The words as floats. No copy that writes them may be under way.
    pub fn floats(&self) -> &[f32] {
        // SAFETY: as above; any bits are an f32.
        unsafe { std::slice::from_raw_parts(self.start.cast::<f32>(), self.words) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let entered = self.context.enter();
        // SAFETY: the memory is ours and freed once.
        let _ = entered.map(|()| unsafe { result::free_host(self.start.cast::<c_void>()) });
    }
}

/// Code in a form that the driver takes.
#[derive(Clone, Copy, Debug)]
pub enum Image<'a> {
    /// The text of PTX, which the driver compiles.
    Ptx(&'a str),
    /// What an assembler has made of it.
    Cubin(&'a [u8]),
}

/// A module on the device, with its kernels.
#[derive(Debug)]
pub struct Module {
    context: Arc<Context>,
    raw: sys::CUmodule,
    kernels: Vec<Kernel>,
}

/// A kernel of a module.
#[derive(Clone, Copy, Debug)]
struct Kernel {
    raw: sys::CUfunction,
    /// Whether it waits by itself for the kernels before it to end.
    waits: bool,
}

// SAFETY: see `Context`.
unsafe impl Send for Module {}

impl Module {
    /// Hands code to the driver and finds the kernels of these names, and whether each waits by itself for those before it.
    pub fn load(context: &Arc<Context>, image: Image<'_>, names: &[(&str, bool)]) -> Result<Module> {
        context.enter()?;
        let raw = match image {
            Image::Cubin(cubin) => {
                // The driver reads as many bytes as the headers say: the file has to begin as one of its kind does.
                if !cubin.starts_with(b"\x7fELF") {
                    return Err(Error::Program("its cubin is no ELF file".into()));
                }
                // SAFETY: the bytes live through the call, and are what the assembler wrote: the plan's digests vouch for
                // them. The module is unloaded once.
                ask("cuModuleLoadData", unsafe { result::module::load_data(cubin.as_ptr().cast()) })?
            }
            Image::Ptx(ptx) => {
                let text = CString::new(ptx).map_err(|_| Error::Program("its PTX holds a zero byte".into()))?;
                // SAFETY: the text ends with a zero byte and lives through the call; the module is unloaded once.
                match unsafe { result::module::load_data(text.as_ptr().cast()) } {
                    Err(error) if error.0 == sys::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => {
                        return Err(old_driver(ptx));
                    }
                    loaded => ask("cuModuleLoadData", loaded)?,
                }
            }
        };
        let mut module = Module { context: Arc::clone(context), raw, kernels: Vec::with_capacity(names.len()) };
        for &(name, waits) in names {
            let name = CString::new(name).map_err(|_| Error::Program("a kernel's name holds a zero byte".into()))?;
            // SAFETY: the module is loaded.
            let kernel = ask("cuModuleGetFunction", unsafe { result::module::get_function(raw, name) })?;
            module.kernels.push(Kernel { raw: kernel, waits });
        }
        Ok(module)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let entered = self.context.enter();
        // SAFETY: the module is loaded, and unloaded once.
        let _ = entered.map(|()| unsafe { result::module::unload(self.raw) });
    }
}

/// Work that the device does in order.
#[derive(Debug)]
pub struct Stream {
    context: Arc<Context>,
    raw: sys::CUstream,
}

// SAFETY: see `Context`.
unsafe impl Send for Stream {}

impl Stream {
    /// A stream of its own.
    pub fn new(context: &Arc<Context>) -> Result<Stream> {
        context.enter()?;
        let raw = ask("cuStreamCreate", result::stream::create(result::stream::StreamKind::NonBlocking))?;
        Ok(Stream { context: Arc::clone(context), raw })
    }

    /// Copies the first `words` words to the device.
    ///
    /// # Safety
    /// The words stay unchanged until the stream has got there, and `to` has room for them.
    pub unsafe fn upload(&self, from: &Pinned, words: usize, to: u64) -> Result<()> {
        assert!(words <= from.words, "{words} words of {}", from.words);
        // SAFETY: as the caller promises.
        let answer = unsafe {
            let from = std::slice::from_raw_parts(from.start, words);
            result::memcpy_htod_async(to, from, self.raw)
        };
        ask("cuMemcpyHtoDAsync", answer)
    }

    /// Copies words from the device into those of `to` that `place` names.
    ///
    /// # Safety
    /// `to` is neither read nor written until the stream has got there, and `from` has that many words.
    pub unsafe fn download(&self, from: u64, place: Range<usize>, to: &mut Pinned) -> Result<()> {
        // SAFETY: as the caller promises; the words are borrowed no longer than the call.
        let answer = unsafe { result::memcpy_dtoh_async(&mut to.words()[place], from, self.raw) };
        ask("cuMemcpyDtoHAsync", answer)
    }

    /// Copies bytes within the device. The ranges do not overlap unless they are equal.
    ///
    /// # Safety
    /// Both ranges lie inside memory that outlives the work of the stream.
    pub unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: as the caller promises.
        ask("cuMemcpyDtoDAsync", unsafe { result::memcpy_dtod_async(to, from, bytes, self.raw) })
    }

    /// Sets every byte of memory, which outlives the work of the stream.
    pub fn set(&self, memory: &Memory, byte: u8) -> Result<()> {
        // SAFETY: the range is the memory.
        ask("cuMemsetD8Async", unsafe { result::memset_d8_async(memory.address, byte, memory.bytes, self.raw) })
    }

    /// Starts kernel `index` of a module on `blocks` blocks of `threads` threads, before the one before it has ended if the
    /// kernel waits for that by itself.
    ///
    /// # Safety
    /// `arguments` are what the kernel takes, 8 bytes each, and what it does with them is sound.
    pub unsafe fn launch(
        &self,
        module: &Module,
        index: usize,
        [blocks, row_blocks]: [u32; 2],
        threads: u32,
        arguments: &mut [u64],
        pointers: &mut Vec<*mut c_void>,
    ) -> Result<()> {
        pointers.clear();
        pointers.extend(arguments.iter_mut().map(|argument| ptr::from_mut(argument).cast::<c_void>()));
        let Kernel { raw: kernel, waits } = module.kernels[index];
        if !waits {
            let (grid, block) = ((blocks, row_blocks, 1), (threads, 1, 1));
            // SAFETY: as the caller promises; the driver copies the arguments before it returns.
            let answer = unsafe { result::launch_kernel(kernel, grid, block, 0, self.raw, pointers) };
            return ask("cuLaunchKernel", answer);
        }
        let mut early = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: Default::default(),
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: blocks,
            gridDimY: row_blocks,
            gridDimZ: 1,
            blockDimX: threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: 0,
            hStream: self.raw,
            attrs: &raw mut early,
            numAttrs: 1,
        };
        // SAFETY: as the caller promises; the driver copies the attribute and the arguments before it returns.
        let answer =
            unsafe { sys::cuLaunchKernelEx(&raw const config, kernel, pointers.as_mut_ptr(), ptr::null_mut()) };
        ask("cuLaunchKernelEx", answer.result())
    }

    /// Collects the work that `hand_over` gives to this stream in a graph instead of doing it.
    pub fn capture(&self, hand_over: impl FnOnce() -> Result<()>) -> Result<Graph> {
        // Relaxed: the driver may load a kernel when it first meets it.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is alive.
        ask("cuStreamBeginCapture", unsafe { result::stream::begin_capture(self.raw, mode) })?;
        let handed_over = hand_over();
        // SAFETY: the stream is alive; a capture is ended also where handing over has failed.
        let graph = ask("cuStreamEndCapture", unsafe { result::stream::end_capture(self.raw) });
        handed_over?;
        let graph = graph?;
        // SAFETY: the graph came from the driver, and is destroyed once: what is made of it does not need it.
        let made = unsafe {
            let made = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let _ = result::graph::destroy(graph);
            made
        };
        Ok(Graph { context: Arc::clone(&self.context), raw: ask("cuGraphInstantiate", made)? })
    }

    /// Starts all work of a graph.
    ///
    /// # Safety
    /// What the graph's work does is sound when the stream gets there.
    pub unsafe fn start(&self, graph: &Graph) -> Result<()> {
        // SAFETY: both are alive; the rest is the caller's promise.
        ask("cuGraphLaunch", unsafe { result::graph::launch(graph.raw, self.raw) })
    }

    /// Marks the end of the work so far.
    pub fn record(&self, event: &Event) -> Result<()> {
        // SAFETY: both are alive.
        ask("cuEventRecord", unsafe { result::event::record(event.raw, self.raw) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let entered = self.context.enter();
        // SAFETY: the stream is ours and destroyed once, after its work.
        let _ = entered.map(|()| unsafe {
            let _ = result::stream::synchronize(self.raw);
            result::stream::destroy(self.raw)
        });
    }
}

/// Work that is handed over at once.
#[derive(Debug)]
pub struct Graph {
    context: Arc<Context>,
    raw: sys::CUgraphExec,
}

// SAFETY: see `Context`.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        let entered = self.context.enter();
        // SAFETY: the graph is ours and destroyed once; the driver waits for its work.
        let _ = entered.map(|()| unsafe { result::graph::exec_destroy(self.raw) });
    }
}

/// A mark in a stream.
#[derive(Debug)]
pub struct Event {
    context: Arc<Context>,
    raw: sys::CUevent,
}

// SAFETY: see `Context`.
unsafe impl Send for Event {}

impl Event {
    /// An event that is not recorded yet.
    pub fn new(context: &Arc<Context>) -> Result<Event> {
        context.enter()?;
        let raw = ask("cuEventCreate", result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING))?;
        Ok(Event { context: Arc::clone(context), raw })
    }

    /// Waits until the stream has got there.
    pub fn wait(&self) -> Result<()> {
        // SAFETY: the event is alive.
        ask("cuEventSynchronize", unsafe { result::event::synchronize(self.raw) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let entered = self.context.enter();
        // SAFETY: the event is ours and destroyed once.
        let _ = entered.map(|()| unsafe { result::event::destroy(self.raw) });
    }
}
