//! Recognition of the CPU backend.

#[cfg(feature = "flex")]
use burn::backend::DispatchDevice;
use burn::prelude::*;

/// Whether a device is the CPU backend `Flex`, with autodiff or without.
#[cfg(feature = "flex")]
pub fn is_cpu(device: &Device) -> bool {
    match device.as_dispatch() {
        DispatchDevice::Flex(_) => true,
        DispatchDevice::Autodiff(device) => matches!(**device, DispatchDevice::Flex(_)),
        #[allow(unreachable_patterns, reason = "which backends exist depends on the features of Burn")]
        _ => false,
    }
}

/// Without the CPU backend no device is one.
#[cfg(not(feature = "flex"))]
pub fn is_cpu(_: &Device) -> bool {
    false
}
