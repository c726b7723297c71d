//! The switch that disables the kernels, for comparison.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the kernels are enabled: initially by the environment, then by [`set_kernels`].
fn switch() -> &'static AtomicBool {
    static SWITCH: OnceLock<AtomicBool> = OnceLock::new();
    SWITCH.get_or_init(|| AtomicBool::new(!std::env::var("DALLE2_KERNELS").is_ok_and(|value| value == "off")))
}

/// Enables or disables the CPU kernels for the process. Without them operations are composed of Burn's. They are enabled
/// unless the environment variable `DALLE2_KERNELS` is `off`.
///
/// The results agree within rounding. The switch serves benchmarks and the search for faults.
pub fn set_kernels(enabled: bool) {
    switch().store(enabled, Ordering::Relaxed);
}

/// Whether the CPU kernels are enabled.
#[cfg(any(test, all(feature = "flex", feature = "kernels")))]
pub(crate) fn kernels_enabled() -> bool {
    switch().load(Ordering::Relaxed)
}
