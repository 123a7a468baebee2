//! Device memory, page-locked memory, pools, and what an address is.

use crate::{
    abi::{In, Out, api},
    arguments,
    codes::{Answer, Code, invalid, unsupported},
    context::{Context, current, stream},
    copies::{self, is_device},
    graph,
    state::{Pinned, driver, gpu, lock},
    work::{self, HostRange, Work},
};

/// The handle of a device's pool is its number plus this; handles of objects are multiples of 16.
const POOL: usize = 0x7001;

fn allocate(context: &Context, bytes: usize) -> Answer<u64> {
    if bytes == 0 {
        return invalid("0 bytes of memory");
    }
    let memory = &context.core.gpu.device.memory;
    let found = memory.alloc(bytes as u64).or_else(|_| {
        // What streams are still to free may be enough.
        context.wait();
        memory.alloc(bytes as u64)
    });
    let address = found.map_err(|error| Code::ERROR_OUT_OF_MEMORY.because(error.to_string()))?;
    lock(&context.allocations).insert(address, bytes as u64);
    Ok(address)
}

/// Takes an allocation out of the context's list, so that it is freed once.
fn take(context: &Context, address: u64) -> Answer {
    match lock(&context.allocations).remove(&address) {
        Some(_) => Ok(()),
        None => invalid(format!("{address:#x} is no allocation of the current context")),
    }
}

fn allocate_async(out: Out<u64>, bytes: usize, handle: usize) -> Answer {
    let (context, stream) = stream(handle)?;
    if lock(&stream.capture).is_some() {
        return unsupported("allocations in graphs");
    }
    // cudarc asks for nothing where a slice is empty.
    if bytes == 0 {
        return out.set(0);
    }
    out.set(allocate(&context, bytes)?)
}

fn allocate_host(out: Out<usize>, bytes: usize, flags: u32) -> Answer {
    current()?;
    if flags & !7 != 0 || bytes == 0 {
        return invalid(format!("{bytes} bytes with flags {flags:#x}"));
    }
    let address = work::allocate_host(bytes)
        .ok_or_else(|| Code::ERROR_OUT_OF_MEMORY.because(format!("{bytes} bytes of the host's memory")))?;
    lock(&driver()?.host).insert(address, Pinned { bytes, flags, is_own: true });
    out.set(address)
}

fn pool(handle: usize) -> Answer<i32> {
    let ordinal = handle.wrapping_sub(POOL) as i32;
    gpu(ordinal).map_err(|_| Code::ERROR_INVALID_HANDLE.because(format!("{handle:#x} is no pool")))?;
    Ok(ordinal)
}

/// An attribute of an address as the bytes of its documented type.
fn attribute(number: u32, address: u64) -> Answer<Vec<u8>> {
    let driver = driver()?;
    if is_device(address) {
        let found = driver.gpus.iter().find_map(|gpu| Some((gpu, gpu.device.memory.range(address)?)));
        let Some((gpu, (base, bytes))) = found else { return invalid(format!("{address:#x} is in no allocation")) };
        let context = lock(&gpu.primary).context.as_ref().map_or(0, |context| context.handle);
        return Ok(match number {
            1 => context.to_le_bytes().to_vec(),
            2 => 2u32.to_le_bytes().to_vec(),
            3 => address.to_le_bytes().to_vec(),
            6 | 10 | 15 => 0u32.to_le_bytes().to_vec(),
            8 => vec![0],
            9 => (gpu.ordinal as i32).to_le_bytes().to_vec(),
            7 | 11 => base.to_le_bytes().to_vec(),
            12 => bytes.to_le_bytes().to_vec(),
            13 => vec![1],
            _ => return invalid(format!("attribute {number} of device memory")),
        });
    }
    let host = lock(&driver.host);
    let found = host.range(..=address as usize).next_back();
    let Some((&start, pinned)) = found.filter(|(start, pinned)| address as usize - **start < pinned.bytes) else {
        return invalid(format!("{address:#x} is neither the device's nor page-locked"));
    };
    Ok(match number {
        2 => 1u32.to_le_bytes().to_vec(),
        4 => address.to_le_bytes().to_vec(),
        8 => vec![0],
        11 => start.to_le_bytes().to_vec(),
        12 => pinned.bytes.to_le_bytes().to_vec(),
        13 => vec![1],
        _ => return invalid(format!("attribute {number} of page-locked memory")),
    })
}

api! {
    fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) {
        let info = current()?.core.gpu.device.memory.info();
        free.set(info.0 as usize)?;
        total.set(info.1 as usize)
    }
    fn cuMemAlloc_v2(address: Out<u64>, bytes: usize) {
        let context = current()?;
        graph::refuse_unsafe(&context)?;
        address.set(allocate(&context, bytes)?)
    }
    fn cuMemAllocPitch_v2(address: Out<u64>, pitch: Out<usize>, width: usize, height: usize, element: u32) {
        let context = current()?;
        graph::refuse_unsafe(&context)?;
        if ![4, 8, 16].contains(&element) {
            return invalid(format!("elements of {element} bytes"));
        }
        let row = width.checked_next_multiple_of(512).unwrap_or(usize::MAX);
        let bytes = row.checked_mul(height).ok_or_else(|| Code::ERROR_OUT_OF_MEMORY.because("too many rows"))?;
        address.set(allocate(&context, bytes)?)?;
        pitch.set(row)
    }
    fn cuMemFree_v2(address: u64) {
        let context = current()?;
        if address == 0 {
            return Ok(());
        }
        graph::refuse_unsafe(&context)?;
        take(&context, address)?;
        context.wait();
        let freed = context.core.gpu.device.memory.free(address);
        freed.map_err(|error| Code::ERROR_INVALID_VALUE.because(error.to_string()))?;
        context.core.check()
    }
    fn cuMemGetAddressRange_v2(base: Out<u64>, bytes: Out<usize>, address: u64) {
        let range = current()?.core.gpu.device.memory.range(address);
        let found = range.ok_or_else(|| Code::ERROR_NOT_FOUND.because(format!("{address:#x} is in no allocation")))?;
        base.set_if_wanted(found.0)?;
        bytes.set_if_wanted(found.1 as usize)
    }
    fn cuMemAllocAsync(address: Out<u64>, bytes: usize, handle: usize) / cuMemAllocAsync_ptsz {
        allocate_async(address, bytes, handle)
    }
    fn cuMemAllocFromPoolAsync(
        address: Out<u64>, bytes: usize, from: usize, handle: usize,
    ) / cuMemAllocFromPoolAsync_ptsz {
        pool(from)?;
        allocate_async(address, bytes, handle)
    }
    fn cuMemFreeAsync(address: u64, handle: usize) / cuMemFreeAsync_ptsz {
        let (context, stream) = stream(handle)?;
        if address == 0 {
            return Ok(());
        }
        if lock(&stream.capture).is_some() {
            return unsupported("frees in graphs");
        }
        take(&context, address)?;
        context.submit(&stream, vec![], Work::Free(address)).map(drop)
    }
    fn cuMemAllocManaged(_address: Out<u64>, _bytes: usize, _flags: u32) { unsupported("managed memory") }
    fn cuDeviceGetDefaultMemPool(out: Out<usize>, device: i32) { out.set(POOL + gpu(device)?.ordinal) }
    fn cuDeviceGetMemPool(out: Out<usize>, device: i32) { out.set(POOL + gpu(device)?.ordinal) }
    fn cuDeviceSetMemPool(device: i32, from: usize) {
        if pool(from)? == device { Ok(()) } else { invalid("a pool of another device") }
    }
    fn cuMemPoolTrimTo(from: usize, _bytes: usize) { pool(from).map(drop) }
    fn cuMemPoolGetAttribute(from: usize, number: u32, value: usize) {
        let (free, total) = gpu(pool(from)?)?.device.memory.info();
        match number {
            1..=3 => arguments::write_bytes(value, &0u32.to_le_bytes()),
            4 => arguments::write_bytes(value, &0u64.to_le_bytes()),
            5..=8 => arguments::write_bytes(value, &(total - free).to_le_bytes()),
            _ => invalid(format!("attribute {number} of a pool")),
        }
    }
    fn cuMemPoolSetAttribute(from: usize, number: u32, value: usize) {
        pool(from)?;
        match number {
            // Hints on how memory is reused change nothing here.
            1..=3 => arguments::read_bytes(value, 4).map(drop),
            4 | 6 | 8 => arguments::read_bytes(value, 8).map(drop),
            _ => invalid(format!("attribute {number} of a pool")),
        }
    }

    fn cuMemHostAlloc(address: Out<usize>, bytes: usize, flags: u32) { allocate_host(address, bytes, flags) }
    fn cuMemAllocHost_v2(address: Out<usize>, bytes: usize) { allocate_host(address, bytes, 0) }
    fn cuMemFreeHost(address: usize) {
        let context = current()?;
        let mut host = lock(&driver()?.host);
        if !host.get(&address).is_some_and(|pinned| pinned.is_own) {
            return invalid(format!("{address:#x} was not given by cuMemHostAlloc"));
        }
        let gone = host.remove(&address);
        drop(host);
        // Copies that are under way may use it.
        context.wait();
        if let Some(pinned) = gone {
            work::free_host(address, pinned.bytes);
        }
        context.core.check()
    }
    fn cuMemHostRegister_v2(address: usize, bytes: usize, flags: u32) {
        current()?;
        if address == 0 || bytes == 0 || flags & !0xf != 0 {
            return invalid(format!("{bytes} bytes at {address:#x} with flags {flags:#x}"));
        }
        let mut host = lock(&driver()?.host);
        let end = address.saturating_add(bytes);
        let overlaps = host.range(..end).next_back().is_some_and(|(&start, pinned)| start + pinned.bytes > address);
        if overlaps {
            return Err(Code::ERROR_HOST_MEMORY_ALREADY_REGISTERED.because(format!("{bytes} bytes at {address:#x}")));
        }
        host.insert(address, Pinned { bytes, flags, is_own: false });
        Ok(())
    }
    fn cuMemHostUnregister(address: usize) {
        let context = current()?;
        let mut host = lock(&driver()?.host);
        if host.get(&address).is_none_or(|pinned| pinned.is_own) {
            return Err(Code::ERROR_HOST_MEMORY_NOT_REGISTERED.because(format!("{address:#x}")));
        }
        host.remove(&address);
        drop(host);
        context.synchronize()
    }
    fn cuMemHostGetFlags(flags: Out<u32>, address: usize) {
        if !copies::is_pinned(HostRange { address, bytes: 1 }) {
            return invalid(format!("{address:#x} is not page-locked"));
        }
        let host = lock(&driver()?.host);
        flags.set(host.range(..=address).next_back().map_or(0, |(_, pinned)| pinned.flags))
    }
    fn cuMemHostGetDevicePointer_v2(_device: Out<u64>, _address: usize, _flags: u32) {
        unsupported("kernels that reach the host's memory")
    }

    fn cuPointerGetAttribute(value: usize, number: u32, address: u64) {
        arguments::write_bytes(value, &attribute(number, address)?)
    }
    fn cuPointerGetAttributes(count: u32, numbers: In<u32>, values: In<usize>, address: u64) {
        for (number, value) in numbers.get_all(count as usize)?.into_iter().zip(values.get_all(count as usize)?) {
            // What does not apply to the address is zero, as documented.
            let bytes = attribute(number, address).unwrap_or_else(|_| match number {
                8 | 13 => vec![0],
                2 | 6 | 9 | 10 | 15 => vec![0; 4],
                _ => vec![0; 8],
            });
            arguments::write_bytes(value, &bytes)?;
        }
        Ok(())
    }
    fn cuPointerSetAttribute(value: usize, number: u32, address: u64) {
        arguments::read_bytes(value, 4)?;
        if number != 6 || !is_device(address) {
            return invalid(format!("attribute {number} of {address:#x} cannot be set"));
        }
        Ok(())
    }
}
