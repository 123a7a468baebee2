//! Ctrl-C: the first one asks the work to stop, the next one ends the process with code 130.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::SIGINT;
use signal_hook::flag;

/// Whether Ctrl-C was pressed.
#[derive(Clone, Debug)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens from now on.
    pub fn listen() -> io::Result<Interrupt> {
        let pressed = Arc::new(AtomicBool::new(false));
        // In this order: the first press finds the flag down and only raises it.
        flag::register_conditional_shutdown(SIGINT, 130, Arc::clone(&pressed))?;
        flag::register(SIGINT, Arc::clone(&pressed))?;
        Ok(Interrupt(pressed))
    }

    /// Whether the work should stop.
    pub fn is_pressed(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Work begins that Ctrl-C shall stop.
    pub fn reset(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// From now on Ctrl-C ends the process: there is no work to stop.
    pub fn end_on_next(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
