//! How workers wait for each other: a spinning barrier within a step, a signal that they sleep for between steps.

use std::{
    hint,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};

/// Spins before a waiting worker starts to yield its core: more than any launch's imbalance takes on an idle machine.
const SPINS: u32 = 5_000;
/// Yields before an idle worker goes to sleep: a fraction of a millisecond, longer than the gap between two steps.
const YIELDS: u32 = 200;

/// Locks, whether or not a thread panicked with the lock held: the device reports the panic by other means.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps a value on cache lines of its own (two, as the prefetcher fetches pairs).
#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded<T>(T);

/// A barrier was abandoned because a worker failed.
#[derive(Debug, PartialEq, Eq)]
pub struct Abandoned;

/// A barrier for a fixed number of workers. Whoever arrives last starts the next generation, which the others wait for.
#[derive(Debug)]
pub struct Barrier {
    workers: usize,
    arrived: Padded<AtomicUsize>,
    generation: Padded<AtomicUsize>,
    abandoned: AtomicBool,
}

impl Barrier {
    /// A barrier for so many workers.
    pub fn new(workers: usize) -> Barrier {
        Barrier {
            workers,
            arrived: Padded::default(),
            generation: Padded::default(),
            abandoned: AtomicBool::new(false),
        }
    }

    /// Waits until all workers have come here. What each did before is visible to all after.
    pub fn wait(&self) -> Result<(), Abandoned> {
        // Nobody can start the next generation before this worker arrives, so this is the current one.
        let generation = self.generation.0.load(Ordering::Relaxed);
        if self.arrived.0.fetch_add(1, Ordering::AcqRel) + 1 == self.workers {
            self.arrived.0.store(0, Ordering::Relaxed);
            self.generation.0.store(generation.wrapping_add(1), Ordering::Release);
            return Ok(());
        }
        let mut spins = 0;
        while self.generation.0.load(Ordering::Acquire) == generation {
            if spins < SPINS {
                spins += 1;
                hint::spin_loop();
            } else if self.abandoned.load(Ordering::Acquire) {
                return Err(Abandoned);
            } else {
                thread::yield_now();
            }
        }
        Ok(())
    }

    /// Makes everyone who waits, now or later, give up instead. There is no way back.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
    }
}

/// A rising number that threads wait for.
#[derive(Debug, Default)]
pub struct Signal {
    value: Padded<AtomicU64>,
    sleepers: Mutex<usize>,
    changed: Condvar,
}

impl Signal {
    /// Raises the number and wakes who waits for it. What the caller did before is visible to them.
    pub fn raise(&self, value: u64) {
        // Under the lock, so that nobody goes to sleep between looking and being woken.
        let sleepers = lock(&self.sleepers);
        self.value.0.store(value, Ordering::Release);
        let is_awaited = *sleepers > 0;
        drop(sleepers);
        if is_awaited {
            self.changed.notify_all();
        }
    }

    /// Waits until the number is at least `value`, spinning for a while first, and returns it.
    pub fn wait(&self, value: u64) -> u64 {
        for attempt in 0..SPINS + YIELDS {
            let found = self.value.0.load(Ordering::Acquire);
            if found >= value {
                return found;
            }
            if attempt < SPINS { hint::spin_loop() } else { thread::yield_now() }
        }
        let mut sleepers = lock(&self.sleepers);
        *sleepers += 1;
        loop {
            let found = self.value.0.load(Ordering::Acquire);
            if found >= value {
                *sleepers -= 1;
                return found;
            }
            sleepers = self.changed.wait(sleepers).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
