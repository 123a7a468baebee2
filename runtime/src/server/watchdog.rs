//! Watches over the engine's thread: a step that does not come back is as much a failure as one that fails.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};
use std::{io, thread};

use tokio::sync::{oneshot, watch};

use super::metrics::Metrics;

/// How often the engine is looked at, at most.
const GLANCE: Duration = Duration::from_secs(1);

/// What the engine's thread shows of itself, and whether it has failed.
#[derive(Debug)]
pub struct Pulse {
    born: Instant,
    began: AtomicU64, // milliseconds after `born`, plus one, at which the step under way began; 0 between steps
    open: AtomicU32,  // answers that have not ended
    failure: Mutex<Option<oneshot::Sender<String>>>,
    failed: watch::Sender<bool>,
    metrics: Arc<Metrics>,
}

impl Pulse {
    fn new(metrics: Arc<Metrics>, failure: oneshot::Sender<String>) -> Pulse {
        Pulse {
            born: Instant::now(),
            began: AtomicU64::new(0),
            open: AtomicU32::new(0),
            failure: Mutex::new(Some(failure)),
            failed: watch::Sender::new(false),
            metrics,
        }
    }

    /// A step begins, with so many answers that have not ended.
    pub fn begin(&self, open: u32) {
        self.open.store(open, Ordering::Relaxed);
        self.began.store(self.born.elapsed().as_millis() as u64 + 1, Ordering::Release);
    }

    /// The step has come back.
    pub fn end(&self) {
        self.began.store(0, Ordering::Release);
    }

    /// How long the step under way has taken so far.
    fn step(&self) -> Option<Duration> {
        let began = self.began.load(Ordering::Acquire).checked_sub(1)?;
        self.born.elapsed().checked_sub(Duration::from_millis(began))
    }

    /// The engine is gone, for the first reason that is given.
    pub fn fail(&self, reason: String) {
        let teller = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(teller) = teller else { return };
        self.metrics.fail(self.open.load(Ordering::Relaxed));
        self.failed.send_replace(true);
        // Whoever started the engine may have stopped listening.
        let _ = teller.send(reason);
    }

    /// Waits until the engine is gone.
    pub async fn failed(&self) {
        // The sender is `self`, so it is there to be heard.
        let _ = self.failed.subscribe().wait_for(|failed| *failed).await;
    }
}

/// Watches a pulse until nobody else holds it: a step that takes longer than `patience` is a failure.
pub fn start(patience: Duration, metrics: Arc<Metrics>, failure: oneshot::Sender<String>) -> io::Result<Arc<Pulse>> {
    let pulse = Arc::new(Pulse::new(metrics, failure));
    let watched = Arc::downgrade(&pulse);
    thread::Builder::new().name("lathe-watchdog".to_owned()).spawn(move || watch(&watched, patience))?;
    Ok(pulse)
}

fn watch(pulse: &Weak<Pulse>, patience: Duration) {
    loop {
        thread::sleep(GLANCE.min(patience / 4));
        let Some(pulse) = pulse.upgrade() else { return };
        if pulse.step().is_some_and(|step| step > patience) {
            let seconds = patience.as_secs_f64();
            return pulse
                .fail(format!("a step has not come back after {seconds} s (--step-timeout): the device hangs"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_does_not_come_back_is_the_failure_that_counts() {
        let (failure, failed) = oneshot::channel();
        let metrics = Arc::new(Metrics::default());
        let pulse = start(Duration::from_millis(40), Arc::clone(&metrics), failure).expect("a thread");
        pulse.begin(3);
        let reason = failed.blocking_recv().expect("it fails");
        assert!(reason.contains("0.04 s"), "{reason}");
        pulse.fail("later".to_owned());
        assert!(metrics.has_failed());
        let text = metrics.print("model", "digest", false);
        assert!(text.contains("reason=\"failure\"} 3"), "{text}");
    }

    #[test]
    fn between_steps_nothing_takes_time() {
        let pulse = Pulse::new(Arc::new(Metrics::default()), oneshot::channel().0);
        assert_eq!(pulse.step(), None);
        pulse.begin(1);
        assert!(pulse.step().is_some());
        pulse.end();
        assert_eq!(pulse.step(), None);
    }
}
