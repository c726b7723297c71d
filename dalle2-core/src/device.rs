//! Devices by name.

use burn::prelude::Device;

use crate::{ConfigError, Result, nn};

/// The names of backends, each with a crate feature of the same name.
const BACKENDS: [&str; 6] = ["flex", "cuda", "rocm", "wgpu", "vulkan", "metal"];

/// Returns a device by name: `flex` (or `cpu`), `cuda:0`, `rocm:0`, `wgpu`, `vulkan`, `metal`, or `default` for the best
/// compiled backend. A number after a colon selects among several GPUs of `cuda` and `rocm`.
///
/// # Errors
/// If the name is unknown, or the crate was compiled without its feature.
pub fn device(name: &str) -> Result<Device> {
    let (kind, index) = match name.split_once(':') {
        Some((kind, index)) => (kind, Some(index)),
        None => (name, None),
    };
    let number: usize = match index.map(str::parse) {
        None => 0,
        Some(Ok(number)) if matches!(kind, "cuda" | "rocm") => number,
        Some(_) => {
            return Err(ConfigError::new(
                "device",
                name,
                "must be a name without a number: only cuda and rocm have one, as in cuda:0",
            )
            .into());
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
        _ if BACKENDS.contains(&kind) => {
            let expected = format!("must be a compiled backend: build with `--features {kind}`");
            Err(ConfigError::new("device", name, expected).into())
        }
        _ => Err(ConfigError::new("device", name, format!("must be one of default, {}", BACKENDS.join(", "))).into()),
    }
}

/// Configures glibc to retain freed memory for later tensors and advises transparent huge pages, for the process. Returns
/// whether the allocator accepted the settings.
///
/// Each step of a diffusion network allocates and frees the same large tensors. By default glibc returns them to the
/// operating system, which zeroes every page of the next allocation. Programs that mainly generate or train call this
/// function once at their start, before they create threads. Memory then stays at its peak, and all threads allocate from
/// one arena, because per-thread arenas cannot hold large blocks.
///
/// On 64-bit Linux it also advises huge pages (`MADV_HUGEPAGE`) for address space of half the memory of the machine or
/// control group, at most 64 GiB. The range counts as virtual memory, and as resident memory only where it is used. This
/// step is skipped if address space is limited (`ulimit -v`, `ulimit -d`, or `vm.overcommit_memory` = 2), and has no
/// effect if transparent huge pages are disabled.
///
/// It does nothing with other allocators and without the feature `kernels`.
pub fn keep_memory() -> bool {
    nn::configure_allocator()
}

#[cfg(test)]
mod tests {
    use super::device;

    #[test]
    fn unknown_names_are_explained() {
        assert_eq!(device("flex").unwrap(), burn::prelude::Device::flex());
        assert_eq!(device("cpu").unwrap(), burn::prelude::Device::flex());
        for (name, part) in [("gpu", "one of default"), ("flex:1", "cuda:0"), ("cuda:x", "cuda:0")] {
            let message = device(name).unwrap_err().to_string();
            assert!(message.contains(part), "{name}: {message}");
        }
        #[cfg(not(feature = "rocm"))]
        assert!(device("rocm:0").unwrap_err().to_string().contains("--features rocm"));
    }
}
