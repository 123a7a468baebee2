//! Contexts: what is current on a thread, the order of work among streams, and the error that ends a context.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    thread::{self, ThreadId},
};

use lathe_emulator::Options;

use crate::{
    abi::{self, LEGACY, PER_THREAD},
    codes::{Answer, Code, Refusal},
    graph::{self, Capture},
    report,
    state::{Gpu, Object, driver, lock},
    stream::{Done, Stream, activity},
    work::Work,
};

/// What the threads of a context's streams share.
#[derive(Debug)]
pub struct Core {
    /// The device.
    pub gpu: Arc<Gpu>,
    /// What launches check.
    pub options: Options,
    /// At which kernel the device is lost.
    pub lose_at: Option<u64>,
}

impl Core {
    /// Ends the process's use of the device with an error that stays: only another process gets a sound context.
    pub fn lose(&self, code: Code, why: &str) {
        report::note(&format!("the device is lost with {}: {why}", code.0));
        lock(&self.gpu.lost).get_or_insert(code);
    }

    /// The error that has ended it.
    pub fn lost(&self) -> Option<Code> {
        *lock(&self.gpu.lost)
    }

    /// The same, as an answer.
    pub fn check(&self) -> Answer {
        match self.lost() {
            Some(code) => {
                Err(code.because("an earlier error has ended the use of the device; start the process again"))
            }
            None => Ok(()),
        }
    }
}

/// The streams of a context. Whoever holds the lock submits work, so that all agree on its order.
#[derive(Debug, Default)]
struct Order {
    streams: Vec<Weak<Stream>>,
    own: HashMap<ThreadId, Arc<Stream>>,
    /// Marks of destroyed streams whose work may not be done.
    left: Vec<Arc<Done>>,
}

/// A context.
#[derive(Debug)]
pub struct Context {
    /// Its handle.
    pub handle: usize,
    /// What its streams share.
    pub core: Arc<Core>,
    /// The flags that it was made with.
    pub flags: AtomicU32,
    /// Limits by their number.
    pub limits: Mutex<BTreeMap<u32, usize>>,
    /// Its allocations of device memory.
    pub allocations: Mutex<BTreeMap<u64, u64>>,
    /// Captures under way.
    pub captures: Mutex<Vec<Arc<Capture>>>,
    /// Whether it was destroyed.
    pub is_gone: AtomicBool,
    legacy: Arc<Stream>,
    order: Mutex<Order>,
}

/// A device's primary context.
#[derive(Debug, Default)]
pub struct Primary {
    /// The context, while it is active.
    pub context: Option<Arc<Context>>,
    /// How often it is retained.
    pub count: usize,
    /// Flags for the next activation.
    pub flags: u32,
}

thread_local! {
    static CURRENT: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// The thread's stack of contexts, the current one last; 0 stands for none.
pub fn with_stack<T>(f: impl FnOnce(&mut Vec<usize>) -> T) -> T {
    CURRENT.with_borrow_mut(f)
}

/// The handle of the current context, or 0.
pub fn current_handle() -> usize {
    with_stack(|stack| stack.last().copied().unwrap_or(0))
}

/// The context of a handle.
pub fn find(handle: usize) -> Answer<Arc<Context>> {
    driver()?.get::<Context>(handle)
}

/// The current context, if it is sound.
pub fn current() -> Answer<Arc<Context>> {
    driver()?;
    let handle = current_handle();
    if handle == 0 {
        return Err(Code::ERROR_INVALID_CONTEXT.because("no context is current on this thread"));
    }
    let gone = |_: Refusal| Code::ERROR_CONTEXT_IS_DESTROYED.because("the current context was destroyed");
    let context = driver()?.get::<Context>(handle).map_err(gone)?;
    context.core.check()?;
    Ok(context)
}

/// The stream of a handle, with its context.
pub fn stream(handle: usize) -> Answer<(Arc<Context>, Arc<Stream>)> {
    let handle = if handle == 0 { abi::default_stream() } else { handle };
    if handle == LEGACY || handle == PER_THREAD {
        let context = current()?;
        let stream = if handle == LEGACY { Arc::clone(&context.legacy) } else { context.own_stream()? };
        return Ok((context, stream));
    }
    let stream = driver()?.get::<Stream>(handle)?;
    let context = find(stream.context)?;
    context.core.check()?;
    Ok((context, stream))
}

impl Context {
    /// A context of a device.
    pub fn new(gpu: &Arc<Gpu>, flags: u32) -> Answer<Arc<Context>> {
        let driver = driver()?;
        let handle = driver.new_handle();
        let core = Arc::new(Core {
            gpu: Arc::clone(gpu),
            options: Options { activity: Some(Arc::clone(activity())), ..driver.settings.launch.clone() },
            lose_at: driver.settings.lose,
        });
        core.check()?;
        let context = Arc::new(Context {
            handle,
            legacy: Stream::new(LEGACY, handle, &core, 0, 0)?,
            core,
            flags: AtomicU32::new(flags),
            limits: Mutex::default(),
            allocations: Mutex::default(),
            captures: Mutex::default(),
            is_gone: AtomicBool::new(false),
            order: Mutex::default(),
        });
        driver.keep(handle, Object::Context(Arc::clone(&context)));
        Ok(context)
    }

    /// Ends it: waits for its work, then frees what it holds.
    pub fn destroy(&self) -> Answer {
        self.wait();
        self.is_gone.store(true, Ordering::SeqCst);
        let driver = driver()?;
        driver.forget(self.handle);
        let own = self.handle;
        driver.forget_all(|object| match object {
            Object::Stream(stream) => stream.context == own,
            Object::Event(event) => event.context == own,
            Object::Module(module) => module.context == own,
            Object::Function(function) => function.module.context == own,
            _ => false,
        });
        for address in std::mem::take(&mut *lock(&self.allocations)).into_keys() {
            // Whatever was freed meanwhile is gone already.
            let _ = self.core.gpu.device.memory.free(address);
        }
        Ok(())
    }

    /// Makes a stream.
    pub fn add_stream(&self, flags: u32, priority: i32) -> Answer<Arc<Stream>> {
        let driver = driver()?;
        let stream = Stream::new(driver.new_handle(), self.handle, &self.core, flags, priority)?;
        lock(&self.order).streams.push(Arc::downgrade(&stream));
        driver.keep(stream.handle, Object::Stream(Arc::clone(&stream)));
        Ok(stream)
    }

    /// Forgets a stream; its work goes on.
    pub fn remove_stream(&self, stream: &Arc<Stream>) -> Answer {
        let mut order = lock(&self.order);
        order.left.retain(|done| done.at().is_none());
        order.left.push(stream.tail());
        order.streams.retain(|other| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(stream)));
        drop(order);
        driver()?.forget(stream.handle);
        Ok(())
    }

    /// The calling thread's default stream.
    fn own_stream(&self) -> Answer<Arc<Stream>> {
        let mut order = lock(&self.order);
        if let Some(stream) = order.own.get(&thread::current().id()) {
            return Ok(Arc::clone(stream));
        }
        let stream = Stream::new(PER_THREAD, self.handle, &self.core, 0, 0)?;
        order.streams.push(Arc::downgrade(&stream));
        order.own.insert(thread::current().id(), Arc::clone(&stream));
        Ok(stream)
    }

    /// Hands work to a stream: to its capture, or to its queue behind the marks in `after`.
    pub fn submit(&self, stream: &Arc<Stream>, after: Vec<Arc<Done>>, work: Work) -> Answer<Arc<Done>> {
        if let Some(part) = &mut *lock(&stream.capture) {
            part.add(work)?;
            return Ok(Done::now());
        }
        if stream.handle == LEGACY {
            graph::refuse_implicit(self)?;
        }
        Ok(self.enqueue(stream, after, work))
    }

    fn enqueue(&self, stream: &Arc<Stream>, mut after: Vec<Arc<Done>>, work: Work) -> Arc<Done> {
        let order = lock(&self.order);
        // The legacy stream waits for all blocking ones, and they for it.
        if stream.handle == LEGACY {
            let blocking = order.streams.iter().filter_map(Weak::upgrade).filter(|stream| stream.is_blocking());
            after.extend(blocking.map(|stream| stream.tail()));
            after.extend(order.left.iter().cloned());
        } else if stream.is_blocking() {
            after.push(self.legacy.tail());
        }
        after.retain(|done| done.at().is_none());
        stream.push(after, work)
    }

    /// Hands work to the legacy stream and waits for it.
    pub fn run_now(&self, stream: &Arc<Stream>, work: Work) -> Answer {
        self.submit(stream, vec![], work)?.wait();
        self.core.check()
    }

    /// Waits for all work.
    pub fn wait(&self) {
        let order = lock(&self.order);
        let streams = order.streams.iter().filter_map(Weak::upgrade);
        let mut marks: Vec<Arc<Done>> = streams.map(|stream| stream.tail()).collect();
        marks.push(self.legacy.tail());
        marks.extend(order.left.iter().cloned());
        drop(order);
        for done in marks {
            done.wait();
        }
    }

    /// Waits for all work and gives the error that it ended in, if any.
    pub fn synchronize(&self) -> Answer {
        self.wait();
        self.core.check()
    }
}

/// A number for a capture, never given again.
pub fn next_id() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
