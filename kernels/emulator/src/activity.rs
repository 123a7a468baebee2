//! What goes on beside a launch, which may change the memory that its kernel waits for: kernels and copies of other streams,
//! and the program itself. Whoever stands in for a driver keeps one of these for all launches; a kernel that can do
//! nothing else is a deadlock only when nobody is left who could change that.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a kernel waits for a program that waits for nothing itself, such as one that asks whether a stream is done.
const PATIENCE: Duration = Duration::from_secs(10);
/// After how long a kernel looks again while others run, who do not say what they write; longer where looking takes longer.
const AGAIN: Duration = Duration::from_millis(2);

/// Who can change memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    /// A thread of the program, which can ask for more work.
    Host,
    /// A stream that has work.
    Stream,
}

/// Whether what somebody waits for is still to come.
type Waits = Box<dyn Fn() -> bool + Send>;

#[derive(Default)]
struct State {
    hosts: usize,
    streams: usize,
    /// Those that wait for others, by a number.
    blocked: HashMap<u64, (Party, Waits)>,
    /// Launches that wait for memory to change, and since which change.
    quiet: HashMap<u64, u64>,
}

impl State {
    fn blocked(&self, party: Party) -> usize {
        self.blocked.values().filter(|(found, waits)| *found == party && waits()).count()
    }
}

/// What goes on beside a launch.
#[derive(Default)]
pub struct Activity {
    state: Mutex<State>,
    changed: Condvar,
    /// Counted up when something may have changed memory.
    changes: AtomicU64,
    next: AtomicU64,
}

impl fmt::Debug for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Activity").field("changes", &self.changes).finish_non_exhaustive()
    }
}

impl Activity {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A party begins to count.
    pub fn enter(&self, party: Party) {
        let mut state = self.lock();
        match party {
            Party::Host => state.hosts += 1,
            Party::Stream => state.streams += 1,
        }
        drop(state);
        self.changed.notify_all();
    }

    /// A party is gone.
    pub fn leave(&self, party: Party) {
        let mut state = self.lock();
        match party {
            Party::Host => state.hosts -= 1,
            Party::Stream => state.streams -= 1,
        }
        drop(state);
        self.change();
    }

    /// Something may have changed memory.
    pub fn change(&self) {
        self.changes.fetch_add(1, SeqCst);
        self.changed.notify_all();
    }

    /// Runs `wait`, in which a party can do nothing while `waits` holds.
    pub fn wait<T>(&self, party: Party, waits: impl Fn() -> bool + Send + 'static, wait: impl FnOnce() -> T) -> T {
        let number = self.number();
        self.lock().blocked.insert(number, (party, Box::new(waits)));
        self.changed.notify_all();
        let out = wait();
        self.lock().blocked.remove(&number);
        out
    }

    /// A number for a launch.
    pub(crate) fn number(&self) -> u64 {
        self.next.fetch_add(1, SeqCst)
    }

    /// How often something may have changed memory.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(SeqCst)
    }

    /// A launch that can do nothing until memory changes, as it was at some count of changes, waits for a change. False when
    /// none will come. `has_written` says that the launch itself has changed memory since it last waited, and `look` how
    /// long it takes to find out that it can do nothing.
    pub(crate) fn await_change(&self, launch: u64, seen: u64, has_written: bool, look: Duration) -> bool {
        let (begun, again) = (Instant::now(), AGAIN.max(look));
        let mut state = self.lock();
        if self.changes() != seen {
            return true;
        }
        if has_written {
            self.change();
        }
        let now = self.changes();
        state.quiet.insert(launch, now);
        // Others may find now that all are quiet.
        self.changed.notify_all();
        let will_change = loop {
            if self.changes() != now {
                break true;
            }
            let quiet = state.quiet.values().filter(|&&since| since == now).count();
            let are_others_busy = state.streams > state.blocked(Party::Stream) + quiet;
            let is_program_free = state.hosts > state.blocked(Party::Host);
            if !are_others_busy && !is_program_free {
                break false;
            }
            let most = if are_others_busy { again } else { PATIENCE };
            let left = most.saturating_sub(begun.elapsed());
            if left.is_zero() {
                break are_others_busy;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        };
        state.quiet.remove(&launch);
        will_change
    }
}
