//! Devices by name.

use burn::prelude::Device;

use crate::{ConfigError, Result, nn};

/// Names that this build understands, with the crate feature that brings each in.
const KNOWN: [&str; 6] = ["flex", "cuda", "rocm", "wgpu", "vulkan", "metal"];

/// The device of that name: `flex` (or `cpu`), `cuda:0`, `rocm:0`, `wgpu`, `vulkan`, `metal`, or `default` for the best
/// backend that was built in. A number after a colon chooses among several GPUs of `cuda` and `rocm`.
///
/// # Errors
/// When the name is not known, or the crate was built without the feature of that name.
pub fn device(name: &str) -> Result<Device> {
    let (kind, index) = match name.split_once(':') {
        Some((kind, index)) => (kind, Some(index)),
        None => (name, None),
    };
    let number: usize = match index.map(str::parse) {
        None => 0,
        Some(Ok(number)) if matches!(kind, "cuda" | "rocm") => number,
        Some(_) => {
            return Err(ConfigError::new("device", name, "a number follows cuda and rocm only, as in cuda:0").into());
        }
    };
    let _ = number;
    match kind {
        "default" => Ok(Device::default()),
        #[cfg(feature = "flex")]
        "flex" | "cpu" => Ok(Device::flex()),
        #[cfg(feature = "cuda")]
        "cuda" => Ok(Device::cuda(number)),
        #[cfg(feature = "rocm")]
        "rocm" => Ok(Device::rocm(number)),
        #[cfg(feature = "wgpu")]
        "wgpu" => Ok(Device::wgpu(burn::prelude::DeviceKind::DefaultDevice)),
        #[cfg(feature = "vulkan")]
        "vulkan" => Ok(Device::vulkan(burn::prelude::DeviceKind::DefaultDevice)),
        #[cfg(feature = "metal")]
        "metal" => Ok(Device::metal(burn::prelude::DeviceKind::DefaultDevice)),
        _ if KNOWN.contains(&kind) => {
            let expected = format!("this build has no such backend: build with `--features {kind}`");
            Err(ConfigError::new("device", name, expected).into())
        }
        _ => Err(ConfigError::new("device", name, format!("known are default, {}", KNOWN.join(", "))).into()),
    }
}

/// Keeps the memory of tensors that are freed for those that come next, for the whole process; whether it does.
///
/// A step of a diffusion network makes and frees the same large tensors again and again. glibc gives each back to the
/// operating system at once, which then clears every page of the next one. A program that does little but generate or
/// train calls this once, at its start, before it has threads; its memory stays at the peak then, and all threads allocate
/// from one arena, since those of single threads cannot keep large blocks.
///
/// On 64-bit Linux it also asks for large pages (transparent huge pages) in as many addresses as half of the machine's or
/// the container's memory has bytes, 64 GiB at most, so that a thread that walks through a large tensor looks up fewer pages. They count as virtual
/// memory, and as memory only where they are used. Where addresses are limited (`ulimit -v`, `ulimit -d`, or
/// `vm.overcommit_memory` = 2) none are asked for; where the system has large pages switched off, nothing comes of it.
///
/// It changes nothing with other allocators, for other devices, and without the feature `kernels`.
pub fn keep_memory() -> bool {
    nn::keep_freed()
}

#[cfg(test)]
mod tests {
    use super::device;

    #[test]
    fn names_are_understood_or_explained() {
        assert_eq!(device("flex").unwrap(), burn::prelude::Device::flex());
        assert_eq!(device("cpu").unwrap(), burn::prelude::Device::flex());
        for (name, part) in [("gpu", "known are"), ("flex:1", "cuda:0"), ("cuda:x", "cuda:0")] {
            let message = device(name).unwrap_err().to_string();
            assert!(message.contains(part), "{name}: {message}");
        }
        #[cfg(not(feature = "rocm"))]
        assert!(device("rocm:0").unwrap_err().to_string().contains("--features rocm"));
    }
}
