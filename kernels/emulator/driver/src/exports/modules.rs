//! Modules, their functions and variables, and how many CTAs of a function fit.

use std::sync::atomic::Ordering;

use crate::{
    abi::{In, Out, Text, api},
    arguments,
    codes::{Answer, Code, invalid, unsupported},
    context::{self, current},
    module::{Function, Module},
    state::driver,
};

/// Options of `cuModuleLoadDataEx` that are looked at: buffers for messages, with their sizes.
const INFO_BUFFER: u32 = 3;
const INFO_SIZE: u32 = 4;
const ERROR_BUFFER: u32 = 5;
const ERROR_SIZE: u32 = 6;
/// The first number that is no option.
const OPTIONS: u32 = 36;

fn load(out: Out<usize>, ptx: String) -> Answer {
    let context = current()?;
    out.set(Module::load(&context, ptx)?.0)
}

/// Loads with options: an error's text goes to the program's buffer.
fn load_with_options(out: Out<usize>, image: usize, options: &[u32], values: &[usize], places: usize) -> Answer {
    if let Some(option) = options.iter().find(|&&option| option >= OPTIONS) {
        return invalid(format!("option {option}"));
    }
    let value = |wanted: u32| options.iter().position(|&option| option == wanted).map(|at| (at, values[at]));
    let loaded = arguments::image(image).and_then(|ptx| load(out, ptx));
    let error = loaded.as_ref().err().map_or("", |refusal| &refusal.why);
    for (buffer, size, text) in [(INFO_BUFFER, INFO_SIZE, ""), (ERROR_BUFFER, ERROR_SIZE, error)] {
        if let (Some((_, address)), Some((at, capacity))) = (value(buffer), value(size)) {
            // The low half is the option's unsigned int, and becomes how much was written.
            let written = arguments::write_text(address, capacity & 0xffff_ffff, text);
            arguments::write_bytes(places + at * size_of::<usize>(), &written.to_le_bytes())?;
        }
    }
    loaded
}

fn occupancy(function: usize, block: i32, dynamic: usize) -> Answer<u32> {
    let function = driver()?.get::<Function>(function)?;
    let chip = context::find(function.module.context)?.core.gpu.chip();
    let (shared, _, most) = function.needs();
    match u32::try_from(block) {
        Ok(0) | Err(_) => invalid(format!("blocks of {block} threads")),
        Ok(threads) if u64::from(threads) > most => Ok(0),
        Ok(threads) => Ok(chip.resident_per_sm(threads, shared + dynamic as u64)),
    }
}

/// The block size of most threads on a multiprocessor, and the grid that fills the device with such blocks.
fn best_block(grid: Out<i32>, block: Out<i32>, function: usize, dynamic: usize, limit: i32) -> Answer {
    let found = driver()?.get::<Function>(function)?;
    let most = found.needs().2 as i32;
    let limit = if limit > 0 { limit.min(most) } else { most };
    let (mut best, mut ctas) = (0, 0);
    for threads in (1..=limit / 32).map(|warps| warps * 32).rev() {
        let fit = occupancy(function, threads, dynamic)?;
        if fit as i32 * threads > best * ctas as i32 {
            (best, ctas) = (threads, fit);
        }
    }
    let sms = context::find(found.module.context)?.core.gpu.chip().sms();
    block.set(best)?;
    grid.set((ctas * sms) as i32)
}

fn attribute(number: u32, function: &Function) -> Answer<i32> {
    let (shared, local, threads) = function.needs();
    let (major, minor) = context::find(function.module.context)?.core.gpu.chip().capability();
    Ok(match number {
        0 => threads as i32,
        1 => shared as i32,
        3 => local as i32,
        // Registers are not allotted here: as many as a full multiprocessor leaves a thread.
        4 => 32,
        5 => function.module.version as i32,
        6 => (10 * major + minor) as i32,
        8 => function.dynamic_shared.load(Ordering::SeqCst) as i32,
        9 => -1,
        2 | 7 | 10..=15 => 0,
        _ => return invalid(format!("function attribute {number}")),
    })
}

fn set_attribute(function: &Function, number: u32, value: i32) -> Answer {
    match number {
        8 => {
            let limit = context::find(function.module.context)?.core.gpu.chip().shared_limit();
            let most = limit.saturating_sub(function.needs().0);
            let wanted = u32::try_from(value).ok().filter(|&wanted| u64::from(wanted) <= most);
            let Some(wanted) = wanted else {
                return invalid(format!("{value} bytes of dynamic shared memory; {most} is the most"));
            };
            function.dynamic_shared.store(wanted, Ordering::SeqCst);
            Ok(())
        }
        // A hint on the cache.
        9 if (-1..=100).contains(&value) => Ok(()),
        10..=15 => unsupported("clusters"),
        _ => invalid(format!("function attribute {number} cannot be {value}")),
    }
}

api! {
    fn cuModuleLoad(module: Out<usize>, path: Text) {
        let path = path.get()?;
        let bytes = std::fs::read(&path).map_err(|error| Code::ERROR_FILE_NOT_FOUND.because(format!("{path}: {error}")))?;
        // Read as an image in memory is: to the first zero byte.
        let mut bytes = bytes;
        bytes.push(0);
        load(module, arguments::image(bytes.as_ptr() as usize)?)
    }
    fn cuModuleLoadData(module: Out<usize>, image: usize) { load(module, arguments::image(image)?) }
    fn cuModuleLoadDataEx(module: Out<usize>, image: usize, count: u32, options: In<u32>, values: In<usize>) {
        let count = count as usize;
        let places = values.address();
        load_with_options(module, image, &options.get_all(count)?, &values.get_all(count)?, places)
    }
    fn cuModuleLoadFatBinary(module: Out<usize>, image: usize) { load(module, arguments::image(image)?) }
    fn cuModuleUnload(module: usize) {
        let found = driver()?.get::<Module>(module)?;
        let context = context::find(found.context)?;
        context.wait();
        found.forget_functions()?;
        driver()?.forget(module);
        context.core.check()
    }
    fn cuModuleGetLoadingMode(mode: Out<u32>) {
        driver()?;
        mode.set(1)
    }
    fn cuModuleGetFunction(function: Out<usize>, module: usize, name: Text) {
        function.set(driver()?.get::<Module>(module)?.function(&name.get()?)?)
    }
    fn cuModuleGetFunctionCount(count: Out<u32>, module: usize) {
        count.set(driver()?.get::<Module>(module)?.emulated.kernels().count() as u32)
    }
    fn cuModuleGetGlobal_v2(address: Out<u64>, bytes: Out<usize>, module: usize, name: Text) {
        let name = name.get()?;
        if address.is_null() && bytes.is_null() {
            return invalid("the pointers for address and size are both null");
        }
        let found = driver()?.get::<Module>(module)?.emulated.global(&name);
        let found = found.ok_or_else(|| Code::ERROR_NOT_FOUND.because(format!("the module has no variable `{name}`")))?;
        address.set_if_wanted(found.0)?;
        bytes.set_if_wanted(found.1 as usize)
    }
    fn cuFuncGetModule(module: Out<usize>, function: usize) {
        let found = driver()?.get::<Function>(function)?;
        module.set(driver()?.handle_of(&found.module)?)
    }
    fn cuFuncGetName(name: Out<*const std::ffi::c_char>, function: usize) {
        let found = driver()?.get::<Function>(function)?;
        name.set(found.c_name.as_ptr())
    }
    fn cuFuncGetParamInfo(function: usize, index: usize, offset: Out<usize>, bytes: Out<usize>) {
        let found = driver()?.get::<Function>(function)?;
        match found.params().get(index) {
            Some(param) => {
                offset.set(param.offset as usize)?;
                bytes.set_if_wanted(param.bytes as usize)
            }
            None => invalid(format!("parameter {index} of {}", found.params().len())),
        }
    }
    fn cuFuncGetAttribute(value: Out<i32>, number: u32, function: usize) {
        value.set(attribute(number, &*driver()?.get::<Function>(function)?)?)
    }
    fn cuFuncSetAttribute(function: usize, number: u32, value: i32) {
        set_attribute(&*driver()?.get::<Function>(function)?, number, value)
    }
    fn cuFuncSetCacheConfig(function: usize, config: u32) {
        driver()?.get::<Function>(function)?;
        if config > 3 { invalid(format!("cache configuration {config}")) } else { Ok(()) }
    }
    fn cuFuncSetSharedMemConfig(function: usize, _config: u32) { driver()?.get::<Function>(function).map(drop) }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(count: Out<i32>, function: usize, block: i32, dynamic: usize) {
        count.set(occupancy(function, block, dynamic)? as i32)
    }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        count: Out<i32>, function: usize, block: i32, dynamic: usize, _flags: u32,
    ) {
        count.set(occupancy(function, block, dynamic)? as i32)
    }
    fn cuOccupancyAvailableDynamicSMemPerBlock(bytes: Out<usize>, function: usize, blocks: i32, block: i32) {
        let found = driver()?.get::<Function>(function)?;
        let limit = context::find(found.module.context)?.core.gpu.chip().shared_limit() as usize;
        if blocks < 1 || block < 1 {
            return invalid(format!("{blocks} blocks of {block} threads"));
        }
        let each = (limit + 1024) / blocks as usize;
        bytes.set(each.saturating_sub(1024).saturating_sub(found.needs().0 as usize))
    }
    fn cuOccupancyMaxPotentialBlockSize(
        grid: Out<i32>, block: Out<i32>, function: usize, by_block: usize, dynamic: usize, limit: i32,
    ) {
        if by_block != 0 {
            return unsupported("shared memory by block size");
        }
        best_block(grid, block, function, dynamic, limit)
    }
    fn cuOccupancyMaxPotentialBlockSizeWithFlags(
        grid: Out<i32>, block: Out<i32>, function: usize, by_block: usize, dynamic: usize, limit: i32, _flags: u32,
    ) {
        if by_block != 0 {
            return unsupported("shared memory by block size");
        }
        best_block(grid, block, function, dynamic, limit)
    }
}
