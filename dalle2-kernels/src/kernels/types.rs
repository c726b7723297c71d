//! Arguments of the kernels.

use burn::prelude::*;

use crate::Resample;

/// The inputs of a convolution.
#[derive(Debug)]
pub(crate) struct ConvInput {
    /// `[B, C_in, H, W]`
    pub x: Tensor<4>,
    /// Resampling of `x` before the convolution.
    pub resample: Resample,
    /// A tensor that is added to the result after its own resampling.
    pub residual: Option<(Tensor<4>, Resample)>,
}

/// The shape of a 16-bit weight.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(all(feature = "flex", feature = "kernels")), allow(dead_code, reason = "only the kernels look at it"))]
pub(crate) struct WeightShape {
    /// Input channels.
    pub inputs: usize,
    /// Output channels.
    pub outputs: usize,
    /// Positions of a convolution kernel, 1 for a linear layer.
    pub taps: usize,
}

/// An element-wise function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Elementwise {
    /// `x · σ(x)`
    Silu,
    /// `x · Φ(x)`
    Gelu,
    /// `x · σ(1.702 x)`
    QuickGelu,
}
