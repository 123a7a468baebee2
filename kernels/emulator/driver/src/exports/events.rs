//! Events.

use std::sync::{Arc, Mutex};

use crate::{
    abi::{Out, api},
    codes::{Answer, Code, invalid},
    context::{self, current, stream},
    event::{Event, Mark, elapsed},
    graph,
    state::{Object, driver, lock},
    work::Work,
};

/// The flags of an event for several processes.
const INTERPROCESS: u32 = 4;

fn record(event: usize, handle: usize) -> Answer {
    let event = driver()?.get::<Event>(event)?;
    let (context, stream) = stream(handle)?;
    if event.context != context.handle {
        return Err(Code::ERROR_INVALID_HANDLE.because("the event belongs to another context than the stream"));
    }
    let mark = match graph::record(&stream) {
        Some(mark) => mark,
        None => Mark::Work(context.submit(&stream, vec![], Work::Nothing)?),
    };
    *lock(&event.mark) = mark;
    Ok(())
}

/// The event, if nothing forbids to ask about it.
fn ask(event: usize) -> Answer<Arc<Event>> {
    let event = driver()?.get::<Event>(event)?;
    let context = context::find(event.context)?;
    context.core.check()?;
    if let Mark::Nodes(capture, _) = &*lock(&event.mark) {
        capture.spoil();
    }
    Ok(event)
}

api! {
    fn cuEventCreate(out: Out<usize>, flags: u32) {
        let context = current()?;
        if flags > 7 || flags & INTERPROCESS != 0 {
            return invalid(format!("flags {flags:#x}"));
        }
        let driver = driver()?;
        let handle = driver.new_handle();
        let event = Event { context: context.handle, flags, mark: Mutex::default() };
        driver.keep(handle, Object::Event(Arc::new(event)));
        out.set(handle)
    }
    fn cuEventRecord(event: usize, handle: usize) / cuEventRecord_ptsz { record(event, handle) }
    fn cuEventRecordWithFlags(event: usize, handle: usize, flags: u32) / cuEventRecordWithFlags_ptsz {
        if flags > 1 { invalid(format!("flags {flags:#x}")) } else { record(event, handle) }
    }
    fn cuEventQuery(event: usize) {
        let event = ask(event)?;
        if event.done()?.is_some_and(|done| done.at().is_none()) {
            return Err(Code::ERROR_NOT_READY.because("the event is not reached yet"));
        }
        context::find(event.context)?.core.check()
    }
    fn cuEventSynchronize(event: usize) {
        let event = ask(event)?;
        if let Some(done) = event.done()? {
            done.wait();
        }
        context::find(event.context)?.core.check()
    }
    fn cuEventElapsedTime(milliseconds: Out<f32>, from: usize, to: usize) {
        milliseconds.set(elapsed(&*ask(from)?, &*ask(to)?)?)
    }
    fn cuEventElapsedTime_v2(milliseconds: Out<f32>, from: usize, to: usize) {
        milliseconds.set(elapsed(&*ask(from)?, &*ask(to)?)?)
    }
    fn cuEventDestroy_v2(event: usize) {
        let found = driver()?.get::<Event>(event)?;
        driver()?.forget(event);
        context::find(found.context)?.core.check()
    }
}
