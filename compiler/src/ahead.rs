//! Work by several threads, results in order: threads run a bounded distance ahead of whoever takes the results, so
//! memory stays bounded and the order never depends on the number of threads.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Results per thread that may wait to be taken.
const DISTANCE: usize = 2;

struct State<T> {
    next: usize,
    taken: usize,
    ready: BTreeMap<usize, T>,
    workers: usize,
    stopped: bool,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // The state is whole between statements, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&'a self, state: MutexGuard<'a, State<T>>) -> MutexGuard<'a, State<T>> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the other side that a worker or the consumer is gone, also when it panics.
struct Leave<'a, T> {
    shared: &'a Shared<T>,
    worker: bool,
}

impl<T> Drop for Leave<'_, T> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if self.worker {
            state.workers -= 1;
        } else {
            state.stopped = true;
        }
        drop(state);
        self.shared.changed.notify_all();
    }
}

/// Runs `work(0)`, `work(1)`, … `work(count - 1)` on `threads` threads while `consume` takes the results in that order
/// from the function that it is given, which returns `None` past the last one.
pub fn ahead<T: Send, R>(
    count: usize,
    threads: usize,
    work: impl Fn(usize) -> T + Sync,
    consume: impl FnOnce(&mut dyn FnMut() -> Option<T>) -> R,
) -> R {
    let threads = threads.clamp(1, count.max(1));
    let state = State { next: 0, taken: 0, ready: BTreeMap::new(), workers: threads, stopped: false };
    let shared = Shared { state: Mutex::new(state), changed: Condvar::new() };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let _leave = Leave { shared: &shared, worker: true };
                run_worker(&shared, count, threads * DISTANCE, &work);
            });
        }
        let _leave = Leave { shared: &shared, worker: false };
        consume(&mut || take(&shared))
    })
}

fn run_worker<T>(shared: &Shared<T>, count: usize, distance: usize, work: impl Fn(usize) -> T) {
    loop {
        let mut state = shared.lock();
        while !state.stopped && state.next < count && state.next >= state.taken + distance {
            state = shared.wait(state);
        }
        if state.stopped || state.next >= count {
            return;
        }
        let at = state.next;
        state.next += 1;
        drop(state);
        let result = work(at);
        shared.lock().ready.insert(at, result);
        shared.changed.notify_all();
    }
}

fn take<T>(shared: &Shared<T>) -> Option<T> {
    let mut state = shared.lock();
    loop {
        let at = state.taken;
        if let Some(result) = state.ready.remove(&at) {
            state.taken += 1;
            drop(state);
            shared.changed.notify_all();
            return Some(result);
        }
        if state.workers == 0 {
            return None;
        }
        state = shared.wait(state);
    }
}

#[cfg(test)]
mod tests {
    use super::ahead;

    #[test]
    fn results_come_in_order_whatever_the_threads() {
        for threads in [1, 2, 5, 100] {
            let squares = ahead(50, threads, |at| at * at, |take| std::iter::from_fn(take).collect::<Vec<_>>());
            assert_eq!(squares, (0..50).map(|at| at * at).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_consumer_may_stop_early() {
        assert_eq!(ahead(1000, 3, |at| at, |take| take()), Some(0));
    }

    #[test]
    fn no_work_gives_nothing() {
        assert_eq!(ahead(0, 4, |at| at, |take| take()), None);
    }
}
