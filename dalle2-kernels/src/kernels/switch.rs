//! The switch that turns the kernels off, for comparison.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the environment leaves the kernels on, and whether the program does.
fn switch() -> &'static AtomicBool {
    static SWITCH: OnceLock<AtomicBool> = OnceLock::new();
    SWITCH.get_or_init(|| AtomicBool::new(!std::env::var("DALLE2_KERNELS").is_ok_and(|value| value == "off")))
}

/// Turns the CPU kernels of this module on or off for the whole process; without them every operation is composed of
/// Burn's own. They are on unless the environment variable `DALLE2_KERNELS` is `off`.
///
/// The results agree within rounding, so this is for measuring and for finding faults.
pub fn set_kernels(enabled: bool) {
    switch().store(enabled, Ordering::Relaxed);
}

/// Whether the CPU kernels are on.
pub fn kernels_enabled() -> bool {
    switch().load(Ordering::Relaxed)
}
