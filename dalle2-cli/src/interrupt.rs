//! Ctrl-C: the first one stops the work after its current step, the second one ends the process.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::outcome::INTERRUPTED;

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Handles Ctrl-C from now on; without this call it ends the process.
pub fn watch() {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        let handler = || {
            if REQUESTED.swap(true, Ordering::AcqRel) {
                std::process::exit(i32::from(INTERRUPTED));
            }
        };
        if let Err(error) = ctrlc::set_handler(handler) {
            tracing::warn!("Ctrl-C ends the process at once: {error}");
        }
    });
}

/// Whether Ctrl-C was pressed.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Acquire)
}
