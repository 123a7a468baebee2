//! Streams, and captures of them.

use crate::{
    abi::{LEGACY, Out, PER_THREAD, api},
    codes::{Answer, Code, invalid, unsupported},
    context::{current, stream},
    event::{Event, Mark},
    graph,
    state::{driver, lock},
    work::Work,
};

fn create(out: Out<usize>, flags: u32, priority: i32) -> Answer {
    if flags > 1 {
        return invalid(format!("flags {flags:#x}"));
    }
    out.set(current()?.add_stream(flags, priority.clamp(-5, 0))?.handle)
}

/// Status and, where there is one, number and graph of a stream's capture, with the nodes that its next one follows.
fn capture_info(handle: usize) -> Answer<(u32, u64, usize, Vec<usize>)> {
    let (_, stream) = stream(handle)?;
    let part = lock(&stream.capture);
    Ok(part.as_ref().map_or((0, 0, 0, vec![]), |part| {
        let status = if part.capture.is_broken() { 2 } else { 1 };
        (status, part.capture.id as u64, part.capture.graph.handle, part.last.clone())
    }))
}

api! {
    fn cuStreamCreate(out: Out<usize>, flags: u32) { create(out, flags, 0) }
    fn cuStreamCreateWithPriority(out: Out<usize>, flags: u32, priority: i32) { create(out, flags, priority) }
    fn cuStreamDestroy_v2(handle: usize) {
        if [0, LEGACY, PER_THREAD].contains(&handle) {
            return Err(Code::ERROR_INVALID_HANDLE.because("a default stream cannot be destroyed"));
        }
        let (context, stream) = stream(handle)?;
        context.remove_stream(&stream)
    }
    fn cuStreamGetPriority(handle: usize, priority: Out<i32>) / cuStreamGetPriority_ptsz {
        priority.set(stream(handle)?.1.priority)
    }
    fn cuStreamGetFlags(handle: usize, flags: Out<u32>) / cuStreamGetFlags_ptsz { flags.set(stream(handle)?.1.flags) }
    fn cuStreamGetId(handle: usize, id: Out<u64>) / cuStreamGetId_ptsz { id.set(stream(handle)?.1.handle as u64) }
    fn cuStreamGetCtx(handle: usize, context: Out<usize>) / cuStreamGetCtx_ptsz { context.set(stream(handle)?.0.handle) }
    fn cuStreamGetDevice(handle: usize, device: Out<i32>) / cuStreamGetDevice_ptsz {
        device.set(stream(handle)?.0.core.gpu.ordinal as i32)
    }
    fn cuStreamSynchronize(handle: usize) / cuStreamSynchronize_ptsz {
        let (context, stream) = stream(handle)?;
        graph::refuse_captured(&stream)?;
        // The legacy stream waits for all blocking ones.
        if stream.handle == LEGACY {
            graph::refuse_implicit(&context)?;
            return context.run_now(&stream, Work::Nothing);
        }
        stream.tail().wait();
        context.core.check()
    }
    fn cuStreamQuery(handle: usize) / cuStreamQuery_ptsz {
        let (context, stream) = stream(handle)?;
        graph::refuse_captured(&stream)?;
        context.core.check()?;
        if stream.tail().at().is_none() {
            return Err(Code::ERROR_NOT_READY.because("the stream has work"));
        }
        // An error may have ended the work.
        context.core.check()
    }
    fn cuStreamWaitEvent(handle: usize, event: usize, _flags: u32) / cuStreamWaitEvent_ptsz {
        let (context, stream) = stream(handle)?;
        let mark = lock(&driver()?.get::<Event>(event)?.mark).clone();
        match mark {
            Mark::Never => Ok(()),
            Mark::Nodes(capture, nodes) => graph::join(&stream, &capture, &nodes),
            Mark::Work(done) => {
                if let Some(part) = &*lock(&stream.capture) {
                    part.capture.spoil();
                    let why = "a stream that is being captured cannot wait for work outside of the capture";
                    return Err(Code::ERROR_STREAM_CAPTURE_ISOLATION.because(why));
                }
                context.submit(&stream, vec![done], Work::Nothing).map(drop)
            }
        }
    }
    fn cuStreamAddCallback(handle: usize, function: usize, data: usize, flags: u32) / cuStreamAddCallback_ptsz {
        if function == 0 || flags != 0 {
            return invalid("the function is null, or flags were passed");
        }
        let (context, stream) = stream(handle)?;
        context.submit(&stream, vec![], Work::Callback { function, stream: handle, data }).map(drop)
    }
    fn cuStreamAttachMemAsync(handle: usize, _address: u64, _bytes: usize, _flags: u32) / cuStreamAttachMemAsync_ptsz {
        stream(handle)?;
        unsupported("managed memory")
    }

    fn cuStreamBeginCapture_v2(handle: usize, mode: u32) / cuStreamBeginCapture_v2_ptsz {
        let (context, stream) = stream(handle)?;
        graph::begin(&context, &stream, mode)
    }
    fn cuStreamEndCapture(handle: usize, out: Out<usize>) / cuStreamEndCapture_ptsz {
        let (context, stream) = stream(handle)?;
        let ended = graph::end(&context, &stream);
        out.set(ended.as_ref().map_or(0, |graph| graph.handle))?;
        ended.map(drop)
    }
    fn cuStreamIsCapturing(handle: usize, status: Out<u32>) / cuStreamIsCapturing_ptsz {
        status.set(capture_info(handle)?.0)
    }
    fn cuStreamGetCaptureInfo_v2(
        handle: usize, status: Out<u32>, id: Out<u64>, graph: Out<usize>, nodes: Out<*const usize>, count: Out<usize>,
    ) / cuStreamGetCaptureInfo_v2_ptsz {
        let (found, number, of, last) = capture_info(handle)?;
        status.set(found)?;
        if found == 0 {
            return Ok(());
        }
        id.set_if_wanted(number)?;
        graph.set_if_wanted(of)?;
        count.set_if_wanted(last.len())?;
        nodes.set_if_wanted(graph::lend(last))
    }
    fn cuThreadExchangeStreamCaptureMode(mode: Out<u32>) {
        let old = graph::exchange_mode(mode.get()?)?;
        mode.set(old)
    }
}
