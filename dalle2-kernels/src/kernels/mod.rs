//! Own kernels for f32 on the CPU backend, with hand-written gradients.
//!
//! Burn's CPU backend computes activations in scalar code, composes group normalisation of ten passes over memory, and
//! turns the gradient of a convolution's weights into products too narrow to be fast. Here the former are single sweeps
//! that vectorise on whatever the machine offers (`macerator` chooses at run time) and use all threads, and 3 × 3
//! convolutions and attention are products by the register tile of `raw`, which has all of the unsafe code. What stands
//! beside a convolution or a linear map, a residual or a change of resolution, is done as it reads and writes. Linear
//! layers, other convolutions and attention's gradients are products by the crate that Burn uses too, without Burn's
//! clearing of new memory and the copy of every result. All enter through Burn's backend
//! extensions: `NnOps` is implemented for the backend `Flex`, in `autodiff` for its differentiable form, and
//! the generated dispatch picks between them.
//!
//! Every function here returns its input as `Err` where it does not apply (another backend, another dtype, kernels
//! switched off), and the caller composes the same result of Burn's operations.
//!
//! Built without the feature `kernels`, or without the CPU backend, nothing applies.

#![allow(clippy::result_large_err, reason = "the input comes back as it was, a handle of a few hundred bytes")]

#[cfg(not(all(feature = "flex", feature = "kernels")))]
mod absent;
#[cfg(all(feature = "flex", feature = "kernels"))]
mod cpu;
mod switch;

#[cfg(feature = "flex")]
use burn::backend::DispatchDevice;
use burn::prelude::*;

use super::Resample;

#[cfg(not(all(feature = "flex", feature = "kernels")))]
use absent as chosen;
#[cfg(all(feature = "flex", feature = "kernels"))]
use cpu as chosen;

pub use chosen::{
    activation, attention, convolution, embedding, group_norm, joined, keep_freed, layer_norm, linear, linear_onto,
    multiplies_bf16, conv_bf16, linear_bf16, cast_to_16_bits, swapped, cast_to_f32,
};
pub use switch::{kernels_enabled, set_kernels};

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

/// What a convolution takes, and what it is added to.
#[derive(Debug)]
pub struct ConvInput {
    /// `[B, C_in, H, W]`
    pub x: Tensor<4>,
    /// What happens to `x` before.
    pub resample: Resample,
    /// What is added to the result, after a change of its own.
    pub residual: Option<(Tensor<4>, Resample)>,
}

/// What a weight of 16 bits is multiplied by.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(all(feature = "flex", feature = "kernels")), allow(dead_code, reason = "only the kernels look at it"))]
pub struct WeightShape {
    /// Channels of the other factor.
    pub inputs: usize,
    /// Channels of the product.
    pub outputs: usize,
    /// Positions of a convolution's kernel, 1 for a matrix.
    pub taps: usize,
}

/// An element-wise function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Elementwise {
    /// `x · σ(x)`
    Silu,
    /// `x · Φ(x)`
    Gelu,
    /// `x · σ(1.702 x)`
    QuickGelu,
}
