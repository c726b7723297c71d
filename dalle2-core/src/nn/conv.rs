//! Two-dimensional convolution.

use burn::nn::conv::Conv2d;
use burn::prelude::*;

use super::{kernels, narrow::conv2d_for};

/// Applies a convolution layer. The weight may be narrower than `x`, see [`narrow_weights`](super::narrow_weights).
///
/// On the CPU a 3 × 3 layer of stride 1 with 16 channels or more on both sides may compute tiles of 4 × 4 pixels by
/// Winograd's method. A pixel that is infinite or NaN may then make all of a tile non-finite that reads it, beyond the
/// pixels that depend on it, but no other tile and no other image. A non-finite weight may reach all of its output
/// channel.
///
/// # Shapes
/// - `x`: `[B, C_in, H, W]`
/// - result: `[B, C_out, H', W']`
///
/// # Panics
/// If the channels of `x` are not the layer's.
pub fn conv2d(layer: &Conv2d, x: Tensor<4>) -> Tensor<4> {
    kernels::narrow_convolution(layer, x).unwrap_or_else(|x| {
        let layer = conv2d_for(layer, x.dtype());
        kernels::convolution(&layer, x).unwrap_or_else(|x| layer.forward(x))
    })
}
