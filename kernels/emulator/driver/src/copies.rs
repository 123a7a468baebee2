//! What a copy or fill becomes: whose memory it touches, and when.

use std::sync::Arc;

use crate::{
    codes::{Answer, Code, invalid, unsupported},
    context::{Context, Core},
    state::{Gpu, driver, lock},
    stream::Stream,
    work::{Bytes, HostRange, Work},
};

/// One side of a copy.
#[derive(Clone, Copy, Debug)]
pub enum Side {
    /// An address of the program.
    Host(usize),
    /// An address of the device.
    Device(u64),
}

/// Whether an address is one of a device: devices' memory lies where no process has its own.
pub fn is_device(address: u64) -> bool {
    address >= 1 << 47
}

impl Side {
    /// The side that an address of the unified space is on.
    pub fn unified(address: u64) -> Side {
        if is_device(address) { Side::Device(address) } else { Side::Host(address as usize) }
    }

    fn plus(self, bytes: usize) -> Side {
        match self {
            Side::Host(address) => Side::Host(address.wrapping_add(bytes)),
            Side::Device(address) => Side::Device(address.wrapping_add(bytes as u64)),
        }
    }
}

/// Whether the device of a context has a range.
fn check_device(core: &Core, address: u64, bytes: u64) -> Answer {
    if bytes == 0 {
        return Ok(());
    }
    let found = core.gpu.device.memory.range(address);
    match found {
        Some((base, length)) if bytes <= length - (address - base) => Ok(()),
        _ => invalid(format!("{bytes} bytes at {address:#x} do not lie within one allocation of the device")),
    }
}

/// Whether all of a range is page-locked.
pub fn is_pinned(range: HostRange) -> bool {
    let Ok(driver) = driver() else { return false };
    let host = lock(&driver.host);
    let found = host.range(..=range.address).next_back();
    found.is_some_and(|(&start, pinned)| range.address - start + range.bytes <= pinned.bytes)
}

/// A copy of so many bytes.
pub fn copy(core: &Core, from: Side, to: Side, bytes: usize) -> Answer<Work> {
    let host = |address| -> Answer<HostRange> {
        if address == 0 && bytes > 0 { invalid("a host address is null") } else { Ok(HostRange { address, bytes }) }
    };
    Ok(match (from, to) {
        (Side::Host(from), Side::Device(to)) => {
            check_device(core, to, bytes as u64)?;
            Work::Upload { from: Bytes::Host(host(from)?), to }
        }
        (Side::Device(from), Side::Host(to)) => {
            check_device(core, from, bytes as u64)?;
            Work::Download { from, to: host(to)? }
        }
        (Side::Device(from), Side::Device(to)) => {
            check_device(core, from, bytes as u64)?;
            check_device(core, to, bytes as u64)?;
            Work::Copy { from, to, bytes: bytes as u64 }
        }
        (Side::Host(from), Side::Host(to)) => Work::Host { from: host(from)?, to: host(to)? },
    })
}

/// A copy from one context's device to another's.
pub fn across(source: &Context, from: u64, target: &Context, to: u64, bytes: usize) -> Answer<Work> {
    check_device(&source.core, from, bytes as u64)?;
    check_device(&target.core, to, bytes as u64)?;
    let gpu = |context: &Context| Arc::<Gpu>::clone(&context.core.gpu);
    Ok(Work::Across { source: gpu(source), from, target: gpu(target), to, bytes: bytes as u64 })
}

/// Hands a copy to a stream as an asynchronous one: what is in page-locked memory is read or written when the stream gets
/// there; pageable memory is read at once, and has been written when this returns.
pub fn submit(context: &Context, stream: &Arc<Stream>, work: Work) -> Answer {
    let is_captured = lock(&stream.capture).is_some();
    match work {
        Work::Upload { from: Bytes::Host(range), to } if !is_captured && !is_pinned(range) => {
            let held = Bytes::Held(range.read().into());
            context.submit(stream, vec![], Work::Upload { from: held, to }).map(drop)
        }
        Work::Download { to, .. } if !is_captured && !is_pinned(to) => context.run_now(stream, work),
        // Rows may lie anywhere.
        Work::Many(_) if !is_captured => context.run_now(stream, work),
        work => context.submit(stream, vec![], work).map(drop),
    }
}

/// A copy of a box, as `CUDA_MEMCPY3D` describes it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Box3d {
    pub source: BoxSide,
    pub target: BoxSide,
    pub width: usize,
    pub height: usize,
    pub depth: usize,
}

/// One side of it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BoxSide {
    x: usize,
    y: usize,
    z: usize,
    level: usize,
    kind: u32,
    host: usize,
    device: u64,
    array: usize,
    reserved: usize,
    pitch: usize,
    rows: usize,
}

/// A copy of a rectangle, as `CUDA_MEMCPY2D` describes it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Box2d {
    source: RectangleSide,
    target: RectangleSide,
    width: usize,
    height: usize,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct RectangleSide {
    x: usize,
    y: usize,
    kind: u32,
    host: usize,
    device: u64,
    array: usize,
    pitch: usize,
}

impl From<Box2d> for Box3d {
    fn from(flat: Box2d) -> Box3d {
        let side = |side: RectangleSide| {
            let RectangleSide { x, y, kind, host, device, array, pitch } = side;
            BoxSide { x, y, z: 0, level: 0, kind, host, device, array, reserved: 0, pitch, rows: flat.height }
        };
        let (source, target) = (side(flat.source), side(flat.target));
        Box3d { source, target, width: flat.width, height: flat.height, depth: 1 }
    }
}

/// The memory types of a side.
const HOST: u32 = 1;
const DEVICE: u32 = 2;
const UNIFIED: u32 = 4;
/// The most rows of a box.
const MOST_ROWS: usize = 1 << 20;

impl BoxSide {
    fn start(&self) -> Answer<Side> {
        let base = match self.kind {
            HOST => Side::Host(self.host),
            DEVICE => Side::Device(self.device),
            UNIFIED => Side::unified(self.device),
            3 => return unsupported("arrays"),
            other => return invalid(format!("memory type {other}")),
        };
        Ok(base.plus(self.x).plus(self.y.wrapping_mul(self.pitch)).plus(self.z.wrapping_mul(self.plane())))
    }

    fn plane(&self) -> usize {
        self.pitch.wrapping_mul(self.rows)
    }
}

impl Box3d {
    /// The copies of its rows.
    pub fn work(&self, core: &Core) -> Answer<Work> {
        let (from, to) = (self.source.start()?, self.target.start()?);
        let rows = self.height.checked_mul(self.depth).filter(|&rows| rows <= MOST_ROWS);
        let rows = rows.ok_or_else(|| Code::ERROR_INVALID_VALUE.because("more rows than the emulator copies"))?;
        let at = |side: &BoxSide, start: Side, row: usize| {
            let (plane, line) = (row / self.height * side.plane(), row % self.height * side.pitch);
            start.plus(plane + line)
        };
        let copies =
            (0..rows).map(|row| copy(core, at(&self.source, from, row), at(&self.target, to, row), self.width));
        Ok(Work::Many(copies.collect::<Answer<_>>()?))
    }
}

/// A fill with an element of 1, 2 or 4 bytes: so many in a row, and so many rows.
pub fn fill(
    core: &Core,
    address: u64,
    pitch: usize,
    value: u32,
    size: u32,
    [width, height]: [usize; 2],
) -> Answer<Work> {
    if ![1, 2, 4].contains(&size) || !address.is_multiple_of(u64::from(size)) {
        return invalid(format!("elements of {size} bytes at {address:#x}"));
    }
    if height > MOST_ROWS {
        return invalid(format!("{height} rows"));
    }
    let element = value.to_le_bytes()[..size as usize].to_vec();
    let rows = (0..height).map(|row| {
        let address = address.wrapping_add((row * pitch) as u64);
        check_device(core, address, (width as u64).saturating_mul(u64::from(size)))?;
        Ok(Work::Fill { address, element: element.clone(), count: width as u64 })
    });
    Ok(Work::Many(rows.collect::<Answer<_>>()?))
}
