//! Which of Burn's strategies several devices train by.

use burn::prelude::*;
use burn::tensor::distributed::{DistributedConfig, ReduceOperation};
use burn::train::{ExecutionStrategy, MultiDeviceOptim};

/// How devices train together under Burn's own loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceStrategy {
    /// One device.
    Single,
    /// Each device computes gradients with a copy of the weights, and the first one adds them and runs the optimizer. Works
    /// with any devices.
    Multi,
    /// Each device has weights and an optimizer of its own, and gradients are averaged over all by NCCL. Works with CUDA
    /// devices that differ.
    Ddp,
}

impl DeviceStrategy {
    /// The strategy for these devices: [`Ddp`](Self::Ddp) if there are several, all of them CUDA devices and no two the same.
    pub fn of(devices: &[Device]) -> Self {
        let plain: Vec<Device> = devices.iter().map(|device| device.clone().inner()).collect();
        choose(&plain, is_cuda)
    }

    /// Burn's form of it.
    pub(super) fn execution(self, devices: Vec<Device>) -> ExecutionStrategy {
        match self {
            Self::Single | Self::Multi => ExecutionStrategy::multi(devices, MultiDeviceOptim::OptimMainDevice),
            Self::Ddp => ExecutionStrategy::ddp(devices, DistributedConfig { all_reduce_op: ReduceOperation::Mean }),
        }
    }

    /// What the gradients that the optimizer is handed must be multiplied by, so that they are the mean over the
    /// `accumulation` batches of a step on `devices` devices. Burn adds them up, except that NCCL takes the mean over
    /// the devices.
    pub(super) fn share(self, accumulation: usize, devices: usize) -> f64 {
        match self {
            Self::Single | Self::Multi => 1.0 / accumulation as f64,
            Self::Ddp => devices as f64 / accumulation as f64,
        }
    }
}

fn choose<D: PartialEq>(devices: &[D], is_cuda: impl Fn(&D) -> bool) -> DeviceStrategy {
    let differ = devices.iter().enumerate().all(|(i, device)| !devices[..i].contains(device));
    match devices {
        [] | [_] => DeviceStrategy::Single,
        _ if differ && devices.iter().all(is_cuda) => DeviceStrategy::Ddp,
        _ => DeviceStrategy::Multi,
    }
}

/// Most CUDA devices of a host that are recognised.
#[cfg(feature = "cuda")]
const MOST_CUDA_DEVICES: usize = 256;

#[cfg(feature = "cuda")]
fn is_cuda(device: &Device) -> bool {
    // By comparison, because listing the devices would start CUDA.
    (0..MOST_CUDA_DEVICES).any(|index| *device == Device::cuda(index))
}

#[cfg(not(feature = "cuda"))]
fn is_cuda(_device: &Device) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cuda_devices_that_differ_are_data_parallel() {
        let of = |devices: &[&str]| choose(devices, |name| name.starts_with("cuda"));
        assert_eq!(of(&["cuda:0"]), DeviceStrategy::Single);
        assert_eq!(of(&["cuda:0", "cuda:1"]), DeviceStrategy::Ddp);
        assert_eq!(of(&["cuda:3", "cuda:0", "cuda:1"]), DeviceStrategy::Ddp);
        assert_eq!(of(&["cuda:0", "cuda:0"]), DeviceStrategy::Multi, "NCCL takes a device once");
        assert_eq!(of(&["cuda:0", "wgpu"]), DeviceStrategy::Multi);
        assert_eq!(of(&["flex", "flex"]), DeviceStrategy::Multi);
        assert_eq!(of(&[]), DeviceStrategy::Single);
    }

    #[test]
    fn the_cpu_is_no_cuda_device() {
        let cpu = Device::flex().autodiff();
        assert_eq!(DeviceStrategy::of(std::slice::from_ref(&cpu)), DeviceStrategy::Single);
        assert_eq!(DeviceStrategy::of(&[cpu.clone(), cpu]), DeviceStrategy::Multi);
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn cuda_devices_are_known_by_their_index() {
        assert_eq!(DeviceStrategy::of(&[Device::cuda(0), Device::cuda(1)]), DeviceStrategy::Ddp);
        assert_eq!(DeviceStrategy::of(&[Device::cuda(0), Device::flex()]), DeviceStrategy::Multi);
    }

    #[test]
    fn gradients_become_the_mean_over_the_batches_of_a_step() {
        // Six batches on three devices: sums of six, or means over three devices summed twice.
        assert_eq!(6.0 * DeviceStrategy::Multi.share(6, 3), 1.0);
        assert_eq!(2.0 * DeviceStrategy::Ddp.share(6, 3), 1.0);
    }
}
