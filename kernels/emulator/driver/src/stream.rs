//! Streams: each has a thread that takes its work in order. What orders streams among each other are marks: work waits for
//! the marks that it was submitted after.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread,
    time::Instant,
};

use lathe_emulator::{Activity, Party};

use crate::{
    codes::{Answer, Code},
    context::Core,
    graph::Part,
    state::lock,
    work::Work,
};

/// Set once: when a piece of work is done, and at what time.
#[derive(Debug, Default)]
pub struct Done {
    at: Mutex<Option<Instant>>,
    changed: Condvar,
}

impl Done {
    /// When it was done; nothing while it is not.
    pub fn at(&self) -> Option<Instant> {
        *lock(&self.at)
    }

    /// A thread of the program waits until it is done.
    pub fn wait(self: &Arc<Done>) {
        self.wait_as(Party::Host);
    }

    fn wait_as(self: &Arc<Done>, party: Party) {
        if self.at().is_some() {
            return;
        }
        let own = Arc::clone(self);
        activity().wait(
            party,
            move || own.at().is_none(),
            || {
                let at = lock(&self.at);
                drop(self.changed.wait_while(at, |at| at.is_none()).unwrap_or_else(PoisonError::into_inner));
            },
        );
    }

    fn set(&self) {
        *lock(&self.at) = Some(Instant::now());
        self.changed.notify_all();
    }

    /// A mark of something that is over.
    pub fn now() -> Arc<Done> {
        let done = Done::default();
        done.set();
        Arc::new(done)
    }
}

/// What goes on in the process: what a kernel that waits for memory to change may still hope for.
pub fn activity() -> &'static Arc<Activity> {
    static ACTIVITY: OnceLock<Arc<Activity>> = OnceLock::new();
    ACTIVITY.get_or_init(Arc::default)
}

/// A thread of the program, from its first call of the driver until it ends.
struct Caller;

impl Drop for Caller {
    fn drop(&mut self) {
        activity().leave(Party::Host);
    }
}

thread_local! {
    static CALLER: Caller = {
        activity().enter(Party::Host);
        Caller
    };
}

/// Notes that a thread calls the driver.
pub fn note_caller() {
    // A thread that ends calls no more.
    let _ = CALLER.try_with(|_| ());
}

/// Work in the queue of a stream.
#[derive(Debug)]
struct Item {
    after: Vec<Arc<Done>>,
    work: Work,
    done: Arc<Done>,
}

/// A stream.
#[derive(Debug)]
pub struct Stream {
    /// Its handle; 1 and 2 for the default ones.
    pub handle: usize,
    /// The handle of its context.
    pub context: usize,
    /// `CU_STREAM_NON_BLOCKING` is 1.
    pub flags: u32,
    /// Its priority, which changes nothing here.
    pub priority: i32,
    /// The capture that its work goes to.
    pub capture: Mutex<Option<Part>>,
    queue: Sender<Item>,
    /// Pieces of work that are not done.
    due: Arc<AtomicUsize>,
    tail: Mutex<Arc<Done>>,
}

/// The flag of a stream that does not wait for the legacy default stream.
pub const NON_BLOCKING: u32 = 1;

impl Stream {
    /// A stream with its thread.
    pub fn new(handle: usize, context: usize, core: &Arc<Core>, flags: u32, priority: i32) -> Answer<Arc<Stream>> {
        let (queue, items) = mpsc::channel();
        let (core, due) = (Arc::clone(core), Arc::new(AtomicUsize::new(0)));
        let left = Arc::clone(&due);
        let spawned = thread::Builder::new().name("emulated-stream".into()).spawn(move || serve(&core, &items, &left));
        if let Err(error) = spawned {
            return Err(Code::ERROR_OUT_OF_MEMORY.because(format!("a stream's thread: {error}")));
        }
        Ok(Arc::new(Stream {
            handle,
            context,
            flags,
            priority,
            capture: Mutex::default(),
            queue,
            due,
            tail: Mutex::new(Done::now()),
        }))
    }

    /// Whether it is ordered with the legacy default stream.
    pub fn is_blocking(&self) -> bool {
        self.flags & NON_BLOCKING == 0
    }

    /// The mark of the last work so far.
    pub fn tail(&self) -> Arc<Done> {
        Arc::clone(&lock(&self.tail))
    }

    /// Puts work into the queue. The caller holds the lock of the context's order.
    pub fn push(&self, after: Vec<Arc<Done>>, work: Work) -> Arc<Done> {
        let done = Arc::new(Done::default());
        let item = Item { after, work, done: Arc::clone(&done) };
        *lock(&self.tail) = Arc::clone(&done);
        if self.due.fetch_add(1, Ordering::SeqCst) == 0 {
            activity().enter(Party::Stream);
        }
        if self.queue.send(item).is_err() {
            // The thread lives as long as the queue's sender, so this is never so; nobody must wait for it.
            finish(&done, &self.due);
        }
        done
    }
}

/// The thread of a stream: it ends when the stream is gone and its work is done.
fn serve(core: &Core, items: &Receiver<Item>, due: &AtomicUsize) {
    for item in items {
        item.after.iter().for_each(|done| done.wait_as(Party::Stream));
        if catch_unwind(AssertUnwindSafe(|| item.work.run(core))).is_err() {
            core.lose(Code::ERROR_UNKNOWN, "a panic in the emulated driver; this is a bug of it");
        }
        finish(&item.done, due);
    }
}

/// Notes that a piece of a stream's work is done.
fn finish(done: &Done, due: &AtomicUsize) {
    done.set();
    activity().change();
    if due.fetch_sub(1, Ordering::SeqCst) == 1 {
        activity().leave(Party::Stream);
    }
}
