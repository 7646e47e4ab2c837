//! A flag by which a person asks a run to save and end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Shared between the run, which looks at it after every step, and whoever may ask it to stop.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks for the stop. Safe to call from a signal-handling thread, and more than once.
    pub fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether a stop was asked for.
    pub fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
