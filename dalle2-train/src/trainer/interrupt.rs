//! Stopping a run from another thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A flag that stops a run after its current step, with a checkpoint. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Interrupter {
    stopped: Arc<AtomicBool>,
}

impl Interrupter {
    /// Creates a flag that is not set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Requests the stop.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    /// Whether a stop was requested.
    pub fn should_stop(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }
}
