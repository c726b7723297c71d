//! Two-dimensional convolution.

use burn::nn::conv::Conv2d;
use burn::prelude::*;

use super::kernels;

/// Applies a convolution layer.
///
/// # Shapes
/// - `x`: `[B, C_in, H, W]`
/// - result: `[B, C_out, H', W']`
///
/// # Panics
/// If the channels of `x` are not the layer's.
pub fn conv2d(layer: &Conv2d, x: Tensor<4>) -> Tensor<4> {
    kernels::convolution(layer, x).unwrap_or_else(|x| layer.forward(x))
}
