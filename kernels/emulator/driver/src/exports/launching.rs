//! Launches of kernels and of host functions.

use std::sync::Arc;

use crate::{
    abi::{In, api},
    arguments,
    codes::{Answer, Code, invalid, unsupported},
    context::{self, Context, stream},
    module::Function,
    report,
    state::driver,
    work::{KernelCall, Work},
};

/// Sizes of a launch, and where its parameters are.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared_bytes: u32,
    pub params: usize,
    pub extra: usize,
}

/// Reads the parameters and checks the sizes of a launch.
pub fn prepare(context: &Context, function: usize, shape: Shape) -> Answer<KernelCall> {
    let function = driver()?.get::<Function>(function)?;
    let Shape { grid, block, shared_bytes, params, extra } = shape;
    let allowed = function.dynamic_shared.load(std::sync::atomic::Ordering::SeqCst);
    if shared_bytes > allowed {
        return invalid(format!("{shared_bytes} bytes of dynamic shared memory; the kernel was allowed {allowed}"));
    }
    if function.module.context != context.handle {
        return Err(Code::ERROR_INVALID_HANDLE.because("the kernel belongs to another context than the stream"));
    }
    let params = arguments::kernel_params(function.params(), params, extra)?;
    let call = KernelCall { function: Arc::clone(&function), grid, block, shared_bytes, params };
    let device = &context.core.gpu.device;
    let threads = block.iter().map(|&n| u64::from(n)).product::<u64>();
    if threads <= 1024 && threads > function.needs().2 {
        let why = format!("{threads} threads; the kernel is compiled for {}", function.needs().2);
        return invalid(why);
    }
    match function.module.emulated.check(device, &function.name, &call.launch(&context.core)) {
        Ok(()) => Ok(call),
        Err(fault) => {
            report::note(&fault.to_string());
            invalid(fault.to_string())
        }
    }
}

fn launch(function: usize, shape: Shape, handle: usize) -> Answer {
    let (context, stream) = stream(handle)?;
    let call = prepare(&context, function, shape)?;
    context.submit(&stream, vec![], Work::Kernel(call)).map(drop)
}

/// A launch whose CTAs must all be on the device at once.
fn launch_together(function: usize, shape: Shape, handle: usize) -> Answer {
    let found = driver()?.get::<Function>(function)?;
    let chip = context::find(found.module.context)?.core.gpu.chip();
    let threads = shape.block.iter().product::<u32>();
    let fit = chip.resident_per_sm(threads, found.needs().0 + u64::from(shape.shared_bytes)) * chip.sms();
    let ctas = shape.grid.iter().map(|&n| u64::from(n)).product::<u64>();
    if ctas > u64::from(fit) {
        let why = format!("{ctas} CTAs; {fit} are on the device at once");
        return Err(Code::ERROR_COOPERATIVE_LAUNCH_TOO_LARGE.because(why));
    }
    launch(function, shape, handle)
}

/// `CUlaunchConfig`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Config {
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    stream: usize,
    attributes: In<Attribute>,
    count: u32,
}

/// `CUlaunchAttribute`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Attribute {
    id: u32,
    value: [u64; 8],
}

fn launch_by_config(config: &Config, function: usize, params: usize, extra: usize) -> Answer {
    let Config { grid, block, shared_bytes, stream, attributes, count } = *config;
    let shape = Shape { grid, block, shared_bytes, params, extra };
    let mut together = false;
    for attribute in attributes.get_all(count as usize)? {
        let word = attribute.value[0] as u32;
        match attribute.id {
            // Hints, and permissions to begin earlier than this does.
            0 | 1 | 3 | 5 | 6 | 8 | 9 | 10 => {}
            2 => together = word != 0,
            // One CTA a cluster is no cluster.
            4 if attribute.value[0] == 1 | 1 << 32 && attribute.value[1] as u32 == 1 => {}
            4 => return unsupported("clusters"),
            other => return unsupported(format!("launch attribute {other}")),
        }
    }
    if together { launch_together(function, shape, stream) } else { launch(function, shape, stream) }
}

api! {
    fn cuLaunchKernel(
        function: usize, gx: u32, gy: u32, gz: u32, bx: u32, by: u32, bz: u32, shared_bytes: u32, handle: usize,
        params: usize, extra: usize,
    ) / cuLaunchKernel_ptsz {
        launch(function, Shape { grid: [gx, gy, gz], block: [bx, by, bz], shared_bytes, params, extra }, handle)
    }
    fn cuLaunchKernelEx(config: In<Config>, function: usize, params: usize, extra: usize) / cuLaunchKernelEx_ptsz {
        launch_by_config(&config.get()?, function, params, extra)
    }
    fn cuLaunchCooperativeKernel(
        function: usize, gx: u32, gy: u32, gz: u32, bx: u32, by: u32, bz: u32, shared_bytes: u32, handle: usize,
        params: usize,
    ) / cuLaunchCooperativeKernel_ptsz {
        launch_together(function, Shape { grid: [gx, gy, gz], block: [bx, by, bz], shared_bytes, params, extra: 0 }, handle)
    }
    fn cuLaunchHostFunc(handle: usize, function: usize, data: usize) / cuLaunchHostFunc_ptsz {
        if function == 0 {
            return invalid("the function is null");
        }
        let (context, stream) = stream(handle)?;
        context.submit(&stream, vec![], Work::Call { function, data }).map(drop)
    }
}
