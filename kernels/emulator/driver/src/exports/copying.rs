//! Copies and fills.

use crate::{
    abi::{In, api},
    codes::{Answer, invalid},
    context::{self, Context, current, stream},
    copies::{self, Box2d, Box3d, Side, copy, fill},
    work::Work,
};

/// A copy or fill that is done when the call returns, in the default stream.
fn now(work: impl FnOnce(&Context) -> Answer<Work>) -> Answer {
    let (context, stream) = stream(0)?;
    let work = work(&context)?;
    context.run_now(&stream, work)
}

/// One in a stream.
fn later(handle: usize, work: impl FnOnce(&Context) -> Answer<Work>) -> Answer {
    let (context, stream) = stream(handle)?;
    let work = work(&context)?;
    copies::submit(&context, &stream, work)
}

fn sides(from: Side, to: Side, bytes: usize) -> impl FnOnce(&Context) -> Answer<Work> {
    move |context| copy(&context.core, from, to, bytes)
}

fn filled(address: u64, value: u32, size: u32, count: usize) -> impl FnOnce(&Context) -> Answer<Work> {
    move |context| fill(&context.core, address, 0, value, size, [count, 1])
}

/// Fills go to the stream as they are: they read nothing of the program's.
fn fill_later(handle: usize, work: impl FnOnce(&Context) -> Answer<Work>) -> Answer {
    let (context, stream) = stream(handle)?;
    let work = work(&context)?;
    context.submit(&stream, vec![], work).map(drop)
}

fn across(to: u64, target: usize, from: u64, source: usize, bytes: usize) -> Answer<Work> {
    let context = |handle: usize| if handle == 0 { current() } else { context::find(handle) };
    copies::across(&*context(source)?, from, &*context(target)?, to, bytes)
}

api! {
    fn cuMemcpy(to: u64, from: u64, bytes: usize) / cuMemcpy_ptds {
        now(sides(Side::unified(from), Side::unified(to), bytes))
    }
    fn cuMemcpyAsync(to: u64, from: u64, bytes: usize, handle: usize) / cuMemcpyAsync_ptsz {
        later(handle, sides(Side::unified(from), Side::unified(to), bytes))
    }
    fn cuMemcpyHtoD_v2(to: u64, from: usize, bytes: usize) / cuMemcpyHtoD_v2_ptds {
        now(sides(Side::Host(from), Side::Device(to), bytes))
    }
    fn cuMemcpyDtoH_v2(to: usize, from: u64, bytes: usize) / cuMemcpyDtoH_v2_ptds {
        now(sides(Side::Device(from), Side::Host(to), bytes))
    }
    fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) / cuMemcpyDtoD_v2_ptds {
        now(sides(Side::Device(from), Side::Device(to), bytes))
    }
    fn cuMemcpyHtoDAsync_v2(to: u64, from: usize, bytes: usize, handle: usize) / cuMemcpyHtoDAsync_v2_ptsz {
        later(handle, sides(Side::Host(from), Side::Device(to), bytes))
    }
    fn cuMemcpyDtoHAsync_v2(to: usize, from: u64, bytes: usize, handle: usize) / cuMemcpyDtoHAsync_v2_ptsz {
        later(handle, sides(Side::Device(from), Side::Host(to), bytes))
    }
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, handle: usize) / cuMemcpyDtoDAsync_v2_ptsz {
        later(handle, sides(Side::Device(from), Side::Device(to), bytes))
    }
    fn cuMemcpyPeer(to: u64, target: usize, from: u64, source: usize, bytes: usize) / cuMemcpyPeer_ptds {
        now(|_| across(to, target, from, source, bytes))
    }
    fn cuMemcpyPeerAsync(
        to: u64, target: usize, from: u64, source: usize, bytes: usize, handle: usize,
    ) / cuMemcpyPeerAsync_ptsz {
        later(handle, |_| across(to, target, from, source, bytes))
    }
    fn cuMemcpy2D_v2(params: In<Box2d>) / cuMemcpy2D_v2_ptds {
        let params = Box3d::from(params.get()?);
        now(|context| params.work(&context.core))
    }
    fn cuMemcpy2DUnaligned_v2(params: In<Box2d>) / cuMemcpy2DUnaligned_v2_ptds {
        let params = Box3d::from(params.get()?);
        now(|context| params.work(&context.core))
    }
    fn cuMemcpy2DAsync_v2(params: In<Box2d>, handle: usize) / cuMemcpy2DAsync_v2_ptsz {
        let params = Box3d::from(params.get()?);
        later(handle, |context| params.work(&context.core))
    }
    fn cuMemcpy3D_v2(params: In<Box3d>) / cuMemcpy3D_v2_ptds {
        let params = params.get()?;
        now(|context| params.work(&context.core))
    }
    fn cuMemcpy3DAsync_v2(params: In<Box3d>, handle: usize) / cuMemcpy3DAsync_v2_ptsz {
        let params = params.get()?;
        later(handle, |context| params.work(&context.core))
    }

    fn cuMemsetD8_v2(to: u64, value: u8, count: usize) / cuMemsetD8_v2_ptds { now(filled(to, u32::from(value), 1, count)) }
    fn cuMemsetD16_v2(to: u64, value: u16, count: usize) / cuMemsetD16_v2_ptds {
        now(filled(to, u32::from(value), 2, count))
    }
    fn cuMemsetD32_v2(to: u64, value: u32, count: usize) / cuMemsetD32_v2_ptds { now(filled(to, value, 4, count)) }
    fn cuMemsetD8Async(to: u64, value: u8, count: usize, handle: usize) / cuMemsetD8Async_ptsz {
        fill_later(handle, filled(to, u32::from(value), 1, count))
    }
    fn cuMemsetD16Async(to: u64, value: u16, count: usize, handle: usize) / cuMemsetD16Async_ptsz {
        fill_later(handle, filled(to, u32::from(value), 2, count))
    }
    fn cuMemsetD32Async(to: u64, value: u32, count: usize, handle: usize) / cuMemsetD32Async_ptsz {
        fill_later(handle, filled(to, value, 4, count))
    }
    fn cuMemsetD2D8_v2(to: u64, pitch: usize, value: u8, width: usize, height: usize) / cuMemsetD2D8_v2_ptds {
        now(|context| fill(&context.core, to, pitch, u32::from(value), 1, [width, height]))
    }
    fn cuMemsetD2D32_v2(to: u64, pitch: usize, value: u32, width: usize, height: usize) / cuMemsetD2D32_v2_ptds {
        now(|context| fill(&context.core, to, pitch, value, 4, [width, height]))
    }
    fn cuMemsetD2D8Async(
        to: u64, pitch: usize, value: u8, width: usize, height: usize, handle: usize,
    ) / cuMemsetD2D8Async_ptsz {
        fill_later(handle, |context| fill(&context.core, to, pitch, u32::from(value), 1, [width, height]))
    }
    fn cuMemsetD2D32Async(
        to: u64, pitch: usize, value: u32, width: usize, height: usize, handle: usize,
    ) / cuMemsetD2D32Async_ptsz {
        fill_later(handle, |context| fill(&context.core, to, pitch, value, 4, [width, height]))
    }
    fn cuMemPrefetchAsync(_address: u64, _bytes: usize, _device: i32, handle: usize) / cuMemPrefetchAsync_ptsz {
        stream(handle)?;
        invalid("memory that is not managed cannot be prefetched")
    }
}
