//! What lives as long as the process: the devices, and the table of handles.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use lathe_emulator::{Chip, Device};

use crate::{
    codes::{Answer, Code},
    context::{Context, Primary},
    event::Event,
    graph::{Exec, Graph},
    module::{Function, Module},
    report,
    settings::Settings,
    stream::Stream,
};

/// An emulated device.
#[derive(Debug)]
pub struct Gpu {
    /// Its number.
    pub ordinal: usize,
    /// Its memory, and what executes.
    pub device: Device,
    /// Its primary context.
    pub primary: Mutex<Primary>,
    /// Kernels that it has begun.
    pub kernels: AtomicU64,
    /// The error that has ended this process's use of it.
    pub lost: Mutex<Option<Code>>,
}

impl Gpu {
    /// Which chip it is.
    pub fn chip(&self) -> Chip {
        self.device.chip
    }
}

/// The driver, once `cuInit` has succeeded.
#[derive(Debug)]
pub struct Driver {
    /// What the environment asks for.
    pub settings: Settings,
    /// The visible devices.
    pub gpus: Vec<Arc<Gpu>>,
    /// Page-locked host memory by its first byte: its length, its flags, and whether the driver allocated it.
    pub host: Mutex<BTreeMap<usize, Pinned>>,
    handles: Mutex<HashMap<usize, Object>>,
    next: AtomicUsize,
}

/// A range of page-locked host memory.
#[derive(Clone, Copy, Debug)]
pub struct Pinned {
    /// Its length.
    pub bytes: usize,
    /// The flags that it was made with.
    pub flags: u32,
    /// Whether the driver allocated it; otherwise it is the program's, registered.
    pub is_own: bool,
}

static DRIVER: OnceLock<Driver> = OnceLock::new();

/// Locks what no code leaves half-changed when it panics.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The environment, read once; a wrong value is told.
pub fn settings() -> Answer<&'static Settings> {
    static SETTINGS: OnceLock<Result<Settings, String>> = OnceLock::new();
    let read = || Settings::read().inspect_err(|error| report::tell(error));
    SETTINGS.get_or_init(read).as_ref().map_err(|error| Code::ERROR_INVALID_VALUE.because(error))
}

/// `cuInit`.
pub fn initialize() -> Answer {
    let settings = settings()?;
    if settings.chips.is_empty() {
        return Err(Code::ERROR_NO_DEVICE.because("LATHE_EMULATE and CUDA_VISIBLE_DEVICES leave no device"));
    }
    DRIVER.get_or_init(|| Driver {
        gpus: settings
            .chips
            .iter()
            .enumerate()
            .map(|(ordinal, &chip)| {
                let device = Device::numbered(chip, settings.memory, ordinal as u32);
                Arc::new(Gpu {
                    ordinal,
                    device,
                    primary: Mutex::default(),
                    kernels: AtomicU64::new(0),
                    lost: Mutex::default(),
                })
            })
            .collect(),
        settings: settings.clone(),
        host: Mutex::default(),
        handles: Mutex::default(),
        // Above the handles that stand for default streams.
        next: AtomicUsize::new(0x100),
    });
    Ok(())
}

/// The driver.
pub fn driver() -> Answer<&'static Driver> {
    DRIVER.get().ok_or_else(|| Code::ERROR_NOT_INITIALIZED.because("cuInit was not called, or has failed"))
}

/// The device of a number.
pub fn gpu(ordinal: i32) -> Answer<&'static Arc<Gpu>> {
    let gpus = &driver()?.gpus;
    let found = usize::try_from(ordinal).ok().and_then(|ordinal| gpus.get(ordinal));
    found.ok_or_else(|| Code::ERROR_INVALID_DEVICE.because(format!("device {ordinal} of {}", gpus.len())))
}

/// What a handle stands for.
#[derive(Clone, Debug)]
pub enum Object {
    Context(Arc<Context>),
    Stream(Arc<Stream>),
    Event(Arc<Event>),
    Module(Arc<Module>),
    Function(Arc<Function>),
    Graph(Arc<Graph>),
    /// A node is named by its handle; this is the graph that it is in.
    Node(Arc<Graph>),
    Exec(Arc<Exec>),
}

/// A type that handles stand for.
pub trait Handled: Sized {
    /// What a message calls it.
    const NAME: &'static str;
    /// What a call gives for a handle that is none.
    const WRONG: Code;
    /// The object of this type.
    fn of(object: &Object) -> Option<&Arc<Self>>;
}

macro_rules! handled {
    ($($ty:ident $name:literal $wrong:ident),*) => {$(
        impl Handled for $ty {
            const NAME: &'static str = $name;
            const WRONG: Code = Code::$wrong;
            fn of(object: &Object) -> Option<&Arc<Self>> {
                if let Object::$ty(found) = object { Some(found) } else { None }
            }
        }
    )*};
}
handled!(
    Context "context" ERROR_INVALID_CONTEXT, Stream "stream" ERROR_INVALID_HANDLE, Event "event" ERROR_INVALID_HANDLE,
    Module "module" ERROR_INVALID_HANDLE, Function "function" ERROR_INVALID_HANDLE, Graph "graph" ERROR_INVALID_VALUE,
    Exec "executable graph" ERROR_INVALID_VALUE
);

impl Driver {
    /// A handle that was never used before.
    pub fn new_handle(&self) -> usize {
        self.next.fetch_add(0x10, Ordering::Relaxed)
    }

    /// Puts an object under its handle.
    pub fn keep(&self, handle: usize, object: Object) {
        lock(&self.handles).insert(handle, object);
    }

    /// Forgets a handle.
    pub fn forget(&self, handle: usize) {
        let object = lock(&self.handles).remove(&handle);
        // Dropped when the table is free again, for what an object holds may have handles too.
        drop(object);
    }

    /// Forgets all handles that a test holds for.
    pub fn forget_all(&self, test: impl Fn(&Object) -> bool) {
        let gone: Vec<Object> = lock(&self.handles).extract_if(|_, object| test(object)).map(|(_, o)| o).collect();
        drop(gone);
    }

    /// The object of a handle.
    pub fn get<T: Handled>(&self, handle: usize) -> Answer<Arc<T>> {
        let handles = lock(&self.handles);
        let found = handles.get(&handle).and_then(T::of).cloned();
        found.ok_or_else(|| T::WRONG.because(format!("{handle:#x} is no {}", T::NAME)))
    }

    /// The handle of an object.
    pub fn handle_of<T: Handled>(&self, wanted: &Arc<T>) -> Answer<usize> {
        let handles = lock(&self.handles);
        let found = handles.iter().find(|(_, object)| T::of(object).is_some_and(|found| Arc::ptr_eq(found, wanted)));
        let missing = || Code::ERROR_INVALID_HANDLE.because(format!("the {} is gone", T::NAME));
        found.map(|(&handle, _)| handle).ok_or_else(missing)
    }

    /// The graph of a node.
    pub fn graph_of(&self, node: usize) -> Answer<Arc<Graph>> {
        match lock(&self.handles).get(&node) {
            Some(Object::Node(graph)) => Ok(Arc::clone(graph)),
            _ => Err(Code::ERROR_INVALID_VALUE.because(format!("{node:#x} is no node of a graph"))),
        }
    }
}
