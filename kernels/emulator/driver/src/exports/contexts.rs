//! Contexts: primary ones, those that a program makes, and what is current.

use std::sync::{Arc, atomic::Ordering};

use crate::{
    abi::{In, Out, api},
    codes::{Answer, Code, invalid, unsupported},
    context::{self, Context, current, current_handle, with_stack},
    graph,
    state::{driver, gpu, lock},
};

/// The flags of contexts that the documentation lists.
const FLAGS: u32 = 0x1ff;

fn create(out: Out<usize>, flags: u32, device: i32) -> Answer {
    if flags & !FLAGS != 0 {
        return invalid(format!("flags {flags:#x}"));
    }
    let context = Context::new(gpu(device)?, flags)?;
    with_stack(|stack| stack.push(context.handle));
    out.set(context.handle)
}

fn retain(out: Out<usize>, device: i32) -> Answer {
    let gpu = gpu(device)?;
    let mut primary = lock(&gpu.primary);
    let context = match &primary.context {
        Some(context) => Arc::clone(context),
        None => Context::new(gpu, primary.flags)?,
    };
    primary.context = Some(Arc::clone(&context));
    primary.count += 1;
    out.set(context.handle)
}

fn release(device: i32, all: bool) -> Answer {
    let mut primary = lock(&gpu(device)?.primary);
    if primary.count == 0 && !all {
        return Err(Code::ERROR_INVALID_CONTEXT.because("the primary context is not retained"));
    }
    primary.count = if all { 0 } else { primary.count - 1 };
    let gone = if primary.count == 0 { primary.context.take() } else { None };
    drop(primary);
    gone.map_or(Ok(()), |context| context.destroy())
}

fn set_primary_flags(device: i32, flags: u32) -> Answer {
    if flags & !FLAGS != 0 {
        return invalid(format!("flags {flags:#x}"));
    }
    let mut primary = lock(&gpu(device)?.primary);
    primary.flags = flags;
    if let Some(context) = &primary.context {
        context.flags.store(flags, Ordering::SeqCst);
    }
    Ok(())
}

/// What a limit is until a program sets it, by its number.
fn limit(number: u32) -> Answer<usize> {
    match number {
        0 => Ok(1024),
        1 => Ok(1 << 20),
        2 => Ok(8 << 20),
        5 => Ok(64),
        6 => Ok(0),
        _ => Err(Code::ERROR_UNSUPPORTED_LIMIT.because(format!("limit {number}"))),
    }
}

api! {
    fn cuDevicePrimaryCtxRetain(context: Out<usize>, device: i32) { retain(context, device) }
    fn cuDevicePrimaryCtxRelease_v2(device: i32) { release(device, false) }
    fn cuDevicePrimaryCtxReset_v2(device: i32) { release(device, true) }
    fn cuDevicePrimaryCtxSetFlags_v2(device: i32, flags: u32) { set_primary_flags(device, flags) }
    fn cuDevicePrimaryCtxGetState(device: i32, flags: Out<u32>, active: Out<i32>) {
        let primary = lock(&gpu(device)?.primary);
        flags.set(primary.flags)?;
        active.set(i32::from(primary.context.is_some()))
    }

    fn cuCtxCreate_v2(context: Out<usize>, flags: u32, device: i32) { create(context, flags, device) }
    fn cuCtxCreate_v3(context: Out<usize>, affinity: In<u64>, count: i32, flags: u32, device: i32) {
        if !affinity.is_null() || count != 0 {
            return unsupported("execution affinity");
        }
        create(context, flags, device)
    }
    fn cuCtxCreate_v4(context: Out<usize>, params: In<[usize; 3]>, flags: u32, device: i32) {
        if !params.is_null() && params.get()? != [0; 3] {
            return unsupported("execution affinity");
        }
        create(context, flags, device)
    }
    fn cuCtxDestroy_v2(context: usize) {
        if context == 0 {
            return invalid("the context is null");
        }
        let found = context::find(context)?;
        let primary = &found.core.gpu.primary;
        if lock(primary).context.as_ref().is_some_and(|primary| primary.handle == context) {
            return Err(Code::ERROR_INVALID_CONTEXT.because("a primary context is released, not destroyed"));
        }
        with_stack(|stack| if stack.last() == Some(&context) {
            stack.pop();
        });
        found.destroy()
    }
    fn cuCtxPushCurrent_v2(context: usize) {
        if context == 0 {
            return invalid("the context is null");
        }
        context::find(context)?;
        with_stack(|stack| stack.push(context));
        Ok(())
    }
    fn cuCtxPopCurrent_v2(context: Out<usize>) {
        driver()?;
        let Some(top) = with_stack(Vec::pop) else {
            return Err(Code::ERROR_INVALID_CONTEXT.because("no context is current on this thread"));
        };
        context.set_if_wanted(top)
    }
    fn cuCtxSetCurrent(context: usize) {
        driver()?;
        if context != 0 {
            context::find(context)?;
        }
        with_stack(|stack| {
            stack.pop();
            if context != 0 {
                stack.push(context);
            }
        });
        Ok(())
    }
    fn cuCtxGetCurrent(context: Out<usize>) {
        driver()?;
        context.set(current_handle())
    }
    fn cuCtxGetDevice(device: Out<i32>) { device.set(current()?.core.gpu.ordinal as i32) }
    fn cuCtxGetDevice_v2(device: Out<i32>, context: usize) {
        let context = if context == 0 { current()? } else { context::find(context)? };
        device.set(context.core.gpu.ordinal as i32)
    }
    fn cuCtxGetFlags(flags: Out<u32>) { flags.set(current()?.flags.load(Ordering::SeqCst)) }
    fn cuCtxSetFlags(flags: u32) {
        if flags & !FLAGS != 0 {
            return invalid(format!("flags {flags:#x}"));
        }
        current()?.flags.store(flags, Ordering::SeqCst);
        Ok(())
    }
    fn cuCtxGetId(context: usize, id: Out<u64>) {
        let context = if context == 0 { current()? } else { context::find(context)? };
        id.set(context.handle as u64)
    }
    fn cuCtxGetApiVersion(context: usize, version: Out<u32>) {
        if context != 0 {
            context::find(context)?;
        }
        version.set(3020)
    }
    fn cuCtxSynchronize() {
        let context = current()?;
        graph::refuse_unsafe(&context)?;
        context.synchronize()
    }
    fn cuCtxGetLimit(value: Out<usize>, number: u32) {
        let default = limit(number)?;
        value.set(lock(&current()?.limits).get(&number).copied().unwrap_or(default))
    }
    fn cuCtxSetLimit(number: u32, value: usize) {
        limit(number)?;
        lock(&current()?.limits).insert(number, value);
        Ok(())
    }
    fn cuCtxGetStreamPriorityRange(least: Out<i32>, greatest: Out<i32>) {
        current()?;
        least.set_if_wanted(0)?;
        greatest.set_if_wanted(-5)
    }
    fn cuCtxGetCacheConfig(config: Out<u32>) {
        current()?;
        config.set(0)
    }
    fn cuCtxSetCacheConfig(config: u32) {
        current()?;
        if config > 3 { invalid(format!("cache configuration {config}")) } else { Ok(()) }
    }
    fn cuCtxGetSharedMemConfig(config: Out<u32>) {
        current()?;
        config.set(1)
    }
    fn cuCtxSetSharedMemConfig(_config: u32) { current().map(drop) }
    fn cuCtxResetPersistingL2Cache() { current().map(drop) }
    fn cuCtxEnablePeerAccess(peer: usize, _flags: u32) {
        current()?;
        context::find(peer)?;
        Err(Code::ERROR_PEER_ACCESS_UNSUPPORTED.because("emulated devices do not reach each other's memory"))
    }
    fn cuCtxDisablePeerAccess(peer: usize) {
        current()?;
        context::find(peer)?;
        Err(Code::ERROR_PEER_ACCESS_UNSUPPORTED.because("emulated devices do not reach each other's memory"))
    }
    fn cuProfilerStart() { current().map(drop) }
    fn cuProfilerStop() { current().map(drop) }
}
