//! Connections, each with its limits: for how many there are, for how long a client may be silent and for how long it may
//! take nothing. The accept loop is our own, so that every wait ends.
//!
//! A connection that has asked nothing costs a socket and no more. When sockets or places run out those go first, and
//! then those between two requests, so that nobody keeps others out by being idle.

use std::{
    convert::Infallible,
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http_body_util::combinators::BoxBody;
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioTimer;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::{Instant, sleep, sleep_until},
};

use super::{Policy, socket::Socket};

/// What a request gets.
pub type Answer = Response<BoxBody<Bytes, Infallible>>;

/// The most bytes of a request's head.
const HEAD: usize = 16 << 10;
/// How long to wait after the system had no socket left for a connection.
const OUT_OF_SOCKETS: Duration = Duration::from_millis(50);

/// How a connection was closed before its client wanted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// What came was not HTTP.
    Malformed,
    /// The head of a request took too long, or nothing came.
    Silent,
    /// The client did not take its answer.
    Stalled,
    /// Others needed the place.
    Idle,
}

impl Closed {
    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Closed::Malformed => "malformed",
            Closed::Silent => "silent",
            Closed::Stalled => "stalled",
            Closed::Idle => "idle",
        }
    }
}

/// What answers the requests of all connections.
pub trait Service: Send + Sync + 'static {
    /// Answers a request.
    fn answer(self: Arc<Self>, request: Request<Incoming>) -> impl Future<Output = Answer> + Send;

    /// Hears how a connection was closed against its client's will.
    fn closed(&self, how: Closed);

    /// Hears how many connections there are.
    fn connections(&self, open: usize);
}

/// Accepts connections until `stop` names how long those with requests may go on, and then as long as there are any: who
/// asks meanwhile is answered once. Returns when all is said or the time is over.
pub async fn serve(
    listener: &TcpListener,
    policy: &Policy,
    service: Arc<impl Service>,
    mut stop: watch::Receiver<Option<Duration>>,
) {
    let places = Arc::new(Semaphore::new(policy.max_connections));
    let (pressure, _) = watch::channel(0u64);
    let (open, mut count) = watch::channel(0usize);
    let open = Arc::new(open);
    let mut until: Option<Instant> = None;
    loop {
        if places.available_permits() == 0 {
            pressure.send_modify(|times| *times += 1);
        }
        let step = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let over = async {
            match until {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        let (place, accepted) = tokio::select! {
            step = step => step,
            () = told(&mut stop), if until.is_none() => {
                let grace = stop.borrow().unwrap_or_default();
                until = Some(Instant::now() + grace);
                continue;
            }
            () = all_closed(&mut count), if until.is_some() => return,
            () = over => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) if is_shortage(&error) => {
                // The backlog keeps those that could not be taken; trying at once again would only spin.
                pressure.send_modify(|times| *times += 1);
                sleep(OUT_OF_SOCKETS).await;
                continue;
            }
            // The client has left already.
            Err(_) => continue,
        };
        let connection = Connection {
            service: Arc::clone(&service),
            header_timeout: policy.header_timeout,
            write_timeout: policy.write_timeout,
            stop: stop.clone(),
            pressure: pressure.subscribe(),
        };
        let counted = until.is_none().then(|| Counted::new(&open, &service));
        tokio::spawn(async move {
            let (_place, _counted) = (place, counted);
            connection.run(stream).await;
        });
    }
}

/// Waits until the server shall stop; a sender that is gone stops it as well.
async fn told(stop: &mut watch::Receiver<Option<Duration>>) {
    let _ = stop.wait_for(Option::is_some).await;
}

/// Waits until no connection is left.
async fn all_closed(open: &mut watch::Receiver<usize>) {
    let _ = open.wait_for(|open| *open == 0).await;
}

/// Whether the system or the process has no sockets left.
fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

/// A connection that the end waits for.
struct Counted<S: Service> {
    open: Arc<watch::Sender<usize>>,
    service: Arc<S>,
}

impl<S: Service> Counted<S> {
    fn new(open: &Arc<watch::Sender<usize>>, service: &Arc<S>) -> Counted<S> {
        open.send_modify(|open| *open += 1);
        service.connections(*open.borrow());
        Counted { open: Arc::clone(open), service: Arc::clone(service) }
    }
}

impl<S: Service> Drop for Counted<S> {
    fn drop(&mut self) {
        self.open.send_modify(|open| *open -= 1);
        self.service.connections(*self.open.borrow());
    }
}

/// What a connection needs to know.
struct Connection<S> {
    service: Arc<S>,
    header_timeout: Duration,
    write_timeout: Duration,
    stop: watch::Receiver<Option<Duration>>,
    pressure: watch::Receiver<u64>,
}

impl<S: Service> Connection<S> {
    async fn run(self, stream: TcpStream) {
        let Connection { service, header_timeout, write_timeout, mut stop, mut pressure } = self;
        // Small pieces of a stream must not wait for each other.
        let _ = stream.set_nodelay(true);
        let is_stopping = stop.borrow().is_some();
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(header_timeout).max_buf_size(HEAD);
        builder.keep_alive(!is_stopping);
        let has_asked = Arc::new(AtomicBool::new(false));
        let answers = service_fn(|request| {
            has_asked.store(true, Ordering::Relaxed);
            let answer = Arc::clone(&service).answer(request);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let connection = builder.serve_connection(Socket::new(stream, write_timeout), answers);
        tokio::pin!(connection);
        let end = tokio::select! {
            outcome = connection.as_mut() => outcome,
            () = told(&mut stop), if !is_stopping => {
                if !has_asked.load(Ordering::Relaxed) {
                    return;
                }
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            _ = pressure.changed() => {
                if !has_asked.load(Ordering::Relaxed) {
                    return service.closed(Closed::Idle);
                }
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        // All other ends are the client's own business.
        let is_stalled = |error: &hyper::Error| {
            let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
            source.is_some_and(|source| source.kind() == io::ErrorKind::TimedOut)
        };
        match end {
            Err(error) if error.is_parse() => service.closed(Closed::Malformed),
            Err(error) if error.is_timeout() => service.closed(Closed::Silent),
            Err(error) if is_stalled(&error) => service.closed(Closed::Stalled),
            _ => {}
        }
    }
}

/// Lets the process have as many sockets as it may: the usual limit is below what a server needs.
pub fn raise_socket_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where this is forbidden the limit stays, and fewer clients find a place.
    let _ = setrlimit(Resource::Nofile, limit);
}
