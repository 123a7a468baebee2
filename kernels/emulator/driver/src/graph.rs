//! Graphs: explicit ones, those that a capture makes of a stream's work, and executable ones.

use std::{
    cell::{Cell, RefCell},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, ThreadId},
};

use crate::{
    abi::LEGACY,
    codes::{Answer, Code, Refusal, invalid},
    context::{Context, next_id},
    event::Mark,
    state::{Object, driver, lock},
    stream::{Done, Stream},
    work::Work,
};

/// What a node does, by the numbers of `CUgraphNodeType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    Kernel = 0,
    Copy = 1,
    Fill = 2,
    Host = 3,
    Child = 4,
    Empty = 5,
}

/// A node.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its handle.
    pub handle: usize,
    /// The nodes that it follows.
    pub after: Vec<usize>,
    /// What it does.
    pub kind: Kind,
    /// The same, in full.
    pub work: Work,
    /// The node that it is a copy of, or itself.
    pub origin: usize,
}

/// A graph.
#[derive(Debug)]
pub struct Graph {
    /// Its handle.
    pub handle: usize,
    /// Its nodes, in the order in which they were added.
    pub nodes: Mutex<Vec<Node>>,
}

/// The kind of a piece of work.
fn kind_of(work: &Work) -> Kind {
    match work {
        Work::Kernel(_) => Kind::Kernel,
        Work::Fill { .. } => Kind::Fill,
        Work::Call { .. } | Work::Callback { .. } => Kind::Host,
        Work::Nothing | Work::Free(_) => Kind::Empty,
        Work::Many(list) => list.first().map_or(Kind::Copy, kind_of),
        _ => Kind::Copy,
    }
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Answer<Arc<Graph>> {
        let driver = driver()?;
        let graph = Arc::new(Graph { handle: driver.new_handle(), nodes: Mutex::default() });
        driver.keep(graph.handle, Object::Graph(Arc::clone(&graph)));
        Ok(graph)
    }

    /// Adds a node and gives its handle.
    pub fn add(self: &Arc<Graph>, after: Vec<usize>, kind: Option<Kind>, work: Work) -> Answer<usize> {
        let driver = driver()?;
        let mut nodes = lock(&self.nodes);
        if let Some(stranger) = after.iter().find(|&&other| !nodes.iter().any(|node| node.handle == other)) {
            return invalid(format!("{stranger:#x}, a dependency, is no node of the graph"));
        }
        let handle = driver.new_handle();
        let kind = kind.unwrap_or_else(|| kind_of(&work));
        nodes.push(Node { handle, after, kind, work, origin: handle });
        driver.keep(handle, Object::Node(Arc::clone(self)));
        Ok(handle)
    }

    /// A copy with nodes of its own.
    pub fn duplicate(&self) -> Answer<Arc<Graph>> {
        let driver = driver()?;
        let copy = Graph::new()?;
        let mut nodes = lock(&self.nodes).clone();
        let new: Vec<(usize, usize)> = nodes.iter().map(|node| (node.handle, driver.new_handle())).collect();
        let of = |old: usize| new.iter().find(|(found, _)| *found == old).map_or(old, |&(_, new)| new);
        for node in &mut nodes {
            node.origin = node.handle;
            node.handle = of(node.handle);
            node.after.iter_mut().for_each(|other| *other = of(*other));
            driver.keep(node.handle, Object::Node(Arc::clone(&copy)));
        }
        *lock(&copy.nodes) = nodes;
        Ok(copy)
    }

    /// A node by its handle.
    pub fn with_node<T>(&self, handle: usize, f: impl FnOnce(&mut Node) -> Answer<T>) -> Answer<T> {
        let mut nodes = lock(&self.nodes);
        let node = nodes.iter_mut().find(|node| node.handle == handle);
        f(node.ok_or_else(|| Code::ERROR_INVALID_HANDLE.because("the node is gone"))?)
    }

    /// Removes a node.
    pub fn remove(&self, handle: usize) -> Answer {
        let mut nodes = lock(&self.nodes);
        nodes.retain(|node| node.handle != handle);
        nodes.iter_mut().for_each(|node| node.after.retain(|&other| other != handle));
        drop(nodes);
        driver()?.forget(handle);
        Ok(())
    }

    /// Forgets the graph and its nodes.
    pub fn destroy(&self) -> Answer {
        let driver = driver()?;
        let nodes = std::mem::take(&mut *lock(&self.nodes));
        for node in nodes {
            driver.forget(node.handle);
        }
        driver.forget(self.handle);
        Ok(())
    }

    /// The nodes in an order in which each follows its dependencies.
    pub fn sorted(&self) -> Answer<Vec<Node>> {
        let mut open = lock(&self.nodes).clone();
        let mut out: Vec<Node> = Vec::with_capacity(open.len());
        while !open.is_empty() {
            let is_ready = |node: &Node| node.after.iter().all(|other| out.iter().any(|done| done.handle == *other));
            let Some(at) = open.iter().position(is_ready) else {
                return invalid("the graph's dependencies have a cycle");
            };
            out.push(open.remove(at));
        }
        Ok(out)
    }
}

/// An executable graph.
#[derive(Debug)]
pub struct Exec {
    /// Its handle.
    pub handle: usize,
    /// The flags that it was made with.
    pub flags: u64,
    /// Its nodes, each behind those that it follows.
    pub nodes: Mutex<Vec<Node>>,
    /// The mark of its last launch, which the next one waits for.
    last: Mutex<Arc<Done>>,
}

/// Why an executable graph cannot become another graph, by the numbers of `CUgraphExecUpdateResult`.
pub struct Mismatch {
    /// The reason's number.
    pub reason: u32,
    /// The node of the new graph.
    pub node: usize,
}

impl Exec {
    /// An executable copy of a graph.
    pub fn new(graph: &Graph, flags: u64) -> Answer<Arc<Exec>> {
        // Freeing on launch concerns memory nodes, of which there are none; priorities change nothing.
        if flags & !(1 | 2 | 8) != 0 {
            return invalid(format!("instantiation flags {flags:#x}"));
        }
        let driver = driver()?;
        let (handle, nodes) = (driver.new_handle(), graph.sorted()?);
        let exec = Arc::new(Exec { handle, flags, nodes: Mutex::new(nodes), last: Mutex::new(Done::now()) });
        driver.keep(handle, Object::Exec(Arc::clone(&exec)));
        Ok(exec)
    }

    /// Submits its work to a stream.
    pub fn launch(&self, context: &Context, stream: &Arc<Stream>) -> Answer {
        let work = Work::Many(lock(&self.nodes).iter().map(|node| node.work.clone()).collect());
        if let Some(part) = &mut *lock(&stream.capture) {
            return part.add_as(Some(Kind::Child), work);
        }
        let mut last = lock(&self.last);
        *last = context.submit(stream, vec![Arc::clone(&last)], work)?;
        Ok(())
    }

    /// Replaces what a node does.
    pub fn set(&self, node: usize, work: Work) -> Answer {
        let mut nodes = lock(&self.nodes);
        let found = nodes.iter_mut().find(|found| found.handle == node);
        let found = found.ok_or_else(|| Code::ERROR_INVALID_HANDLE.because("the executable graph lacks the node"))?;
        if found.kind != kind_of(&work) {
            return invalid("the node is of another kind");
        }
        found.work = work;
        Ok(())
    }

    /// Takes over what the nodes of a graph of the same shape do.
    pub fn update(&self, graph: &Graph) -> Answer<Result<(), Mismatch>> {
        const TOPOLOGY: u32 = 2;
        const TYPE: u32 = 3;
        let new = graph.sorted()?;
        let mut nodes = lock(&self.nodes);
        if new.len() != nodes.len() {
            return Ok(Err(Mismatch { reason: TOPOLOGY, node: 0 }));
        }
        let place = |list: &[Node], handle: usize| list.iter().position(|node| node.handle == handle);
        for (old, new_node) in nodes.iter().zip(&new) {
            let places = |list: &[Node], node: &Node| {
                let mut out: Vec<_> = node.after.iter().map(|&other| place(list, other)).collect();
                out.sort_unstable();
                out
            };
            if places(&nodes, old) != places(&new, new_node) {
                return Ok(Err(Mismatch { reason: TOPOLOGY, node: new_node.handle }));
            }
            if old.kind != new_node.kind {
                return Ok(Err(Mismatch { reason: TYPE, node: new_node.handle }));
            }
        }
        for (old, new) in nodes.iter_mut().zip(new) {
            old.work = new.work;
        }
        Ok(Ok(()))
    }
}

/// The modes of a capture, and of a thread.
pub const GLOBAL: u32 = 0;
pub const THREAD_LOCAL: u32 = 1;
pub const RELAXED: u32 = 2;

thread_local! {
    static THREAD_MODE: Cell<u32> = const { Cell::new(GLOBAL) };
}

/// Replaces the thread's mode and gives the old one.
pub fn exchange_mode(mode: u32) -> Answer<u32> {
    if mode > RELAXED {
        return invalid(format!("capture mode {mode}"));
    }
    Ok(THREAD_MODE.replace(mode))
}

/// A capture under way.
#[derive(Debug)]
pub struct Capture {
    /// Its number.
    pub id: usize,
    /// The graph that it makes.
    pub graph: Arc<Graph>,
    mode: u32,
    thread: ThreadId,
    origin: usize,
    is_blocking: bool,
    is_broken: AtomicBool,
    streams: Mutex<Vec<Weak<Stream>>>,
}

/// A stream's part in a capture.
#[derive(Clone, Debug)]
pub struct Part {
    /// The capture.
    pub capture: Arc<Capture>,
    /// The nodes that the stream's next one follows.
    pub last: Vec<usize>,
}

impl Capture {
    /// Spoils the capture: it can only be ended.
    pub fn spoil(&self) {
        self.is_broken.store(true, Ordering::SeqCst);
    }

    /// Whether it is spoilt.
    pub fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::SeqCst)
    }

    fn refuse(&self, why: &str) -> Refusal {
        self.spoil();
        Code::ERROR_STREAM_CAPTURE_UNSUPPORTED.because(why)
    }
}

impl Part {
    /// Adds work as a node behind the stream's last.
    pub fn add(&mut self, work: Work) -> Answer {
        self.add_as(None, work)
    }

    fn add_as(&mut self, kind: Option<Kind>, work: Work) -> Answer {
        if self.capture.is_broken() {
            return Err(Code::ERROR_STREAM_CAPTURE_INVALIDATED.because("the capture was spoilt by an earlier call"));
        }
        if !work.is_capturable() {
            return Err(self.capture.refuse("this work cannot be captured"));
        }
        let node = self.capture.graph.add(std::mem::take(&mut self.last), kind, work)?;
        self.last = vec![node];
        Ok(())
    }
}

/// Begins to capture a stream.
pub fn begin(context: &Context, stream: &Arc<Stream>, mode: u32) -> Answer {
    if mode > RELAXED {
        return invalid(format!("capture mode {mode}"));
    }
    if stream.handle == LEGACY {
        return Err(Code::ERROR_STREAM_CAPTURE_UNSUPPORTED.because("the legacy stream cannot be captured"));
    }
    let mut part = lock(&stream.capture);
    if part.is_some() {
        return Err(Code::ERROR_ILLEGAL_STATE.because("the stream is being captured already"));
    }
    let capture = Arc::new(Capture {
        id: next_id(),
        graph: Graph::new()?,
        mode,
        thread: thread::current().id(),
        origin: stream.handle,
        is_blocking: stream.is_blocking(),
        is_broken: AtomicBool::new(false),
        streams: Mutex::new(vec![Arc::downgrade(stream)]),
    });
    lock(&context.captures).push(Arc::clone(&capture));
    *part = Some(Part { capture, last: vec![] });
    Ok(())
}

/// Ends the capture that began in a stream and gives its graph.
pub fn end(context: &Context, stream: &Arc<Stream>) -> Answer<Arc<Graph>> {
    let part = lock(&stream.capture).clone();
    let part = part.ok_or_else(|| Code::ERROR_ILLEGAL_STATE.because("the stream is not being captured"))?;
    let Part { capture, last } = part;
    if capture.origin != stream.handle {
        return Err(Code::ERROR_STREAM_CAPTURE_UNMATCHED.because("the capture began in another stream"));
    }
    if capture.mode != RELAXED && capture.thread != thread::current().id() {
        capture.spoil();
        return Err(Code::ERROR_STREAM_CAPTURE_WRONG_THREAD.because("the capture began in another thread"));
    }
    for stream in lock(&capture.streams).drain(..).filter_map(|stream| stream.upgrade()) {
        *lock(&stream.capture) = None;
    }
    lock(&context.captures).retain(|other| other.id != capture.id);
    let nodes = lock(&capture.graph.nodes).clone();
    let is_followed = |node: usize| nodes.iter().any(|other| other.after.contains(&node));
    let joined = nodes.iter().all(|node| last.contains(&node.handle) || is_followed(node.handle));
    let code = if capture.is_broken() {
        Code::ERROR_STREAM_CAPTURE_INVALIDATED
    } else if joined {
        return Ok(Arc::clone(&capture.graph));
    } else {
        Code::ERROR_STREAM_CAPTURE_UNJOINED
    };
    capture.graph.destroy()?;
    Err(code.because("the capture gives no graph"))
}

thread_local! {
    static LENT: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// Handles as an array that the program may read until it asks for the next on this thread.
pub fn lend(nodes: Vec<usize>) -> *const usize {
    LENT.with_borrow_mut(|lent| {
        *lent = nodes;
        lent.as_ptr()
    })
}

/// What an event recorded in a stream that is being captured marks; nothing where it is not.
pub fn record(stream: &Stream) -> Option<Mark> {
    lock(&stream.capture).as_ref().map(|part| Mark::Nodes(Arc::clone(&part.capture), part.last.clone()))
}

/// Lets a stream wait for nodes of a capture, which it joins by that.
pub fn join(stream: &Arc<Stream>, capture: &Arc<Capture>, nodes: &[usize]) -> Answer {
    if stream.handle == LEGACY {
        capture.spoil();
        return Err(Code::ERROR_STREAM_CAPTURE_IMPLICIT.because("the legacy stream cannot wait for a capture"));
    }
    let mut part = lock(&stream.capture);
    match &mut *part {
        Some(part) if part.capture.id != capture.id => {
            capture.spoil();
            part.capture.spoil();
            return Err(Code::ERROR_STREAM_CAPTURE_MERGE.because("the event belongs to another capture"));
        }
        Some(part) => {
            part.last.extend_from_slice(nodes);
            part.last.sort_unstable();
            part.last.dedup();
        }
        None => {
            lock(&capture.streams).push(Arc::downgrade(stream));
            *part = Some(Part { capture: Arc::clone(capture), last: nodes.to_vec() });
        }
    }
    Ok(())
}

/// Refuses a call that waits for a stream or asks about it, while that is being captured.
pub fn refuse_captured(stream: &Stream) -> Answer {
    match &*lock(&stream.capture) {
        Some(part) => Err(part.capture.refuse("the stream is being captured")),
        None => Ok(()),
    }
}

/// Refuses work of the legacy stream while a stream that it would wait for is being captured.
pub fn refuse_implicit(context: &Context) -> Answer {
    match lock(&context.captures).iter().find(|capture| capture.is_blocking) {
        Some(capture) => {
            capture.spoil();
            Err(Code::ERROR_STREAM_CAPTURE_IMPLICIT.because("a blocking stream is being captured"))
        }
        None => Ok(()),
    }
}

/// Refuses a call that may wait for all work, while the thread's mode forbids it.
pub fn refuse_unsafe(context: &Context) -> Answer {
    let (mode, me) = (THREAD_MODE.get(), thread::current().id());
    let forbids = |capture: &&Arc<Capture>| match mode {
        RELAXED => false,
        THREAD_LOCAL => capture.thread == me && capture.mode != RELAXED,
        _ => capture.thread == me && capture.mode != RELAXED || capture.mode == GLOBAL,
    };
    match lock(&context.captures).iter().find(forbids) {
        Some(capture) => Err(capture.refuse("the call is not allowed while a stream is being captured")),
        None => Ok(()),
    }
}
