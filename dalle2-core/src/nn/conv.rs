//! Two-dimensional convolution, with what stands before and after it.

use burn::nn::conv::Conv2d;
use burn::prelude::*;

use super::kernels::{self, ConvInput};
use super::{Resample, narrow::conv2d_for, resample};

/// Applies a convolution layer. The weight may be narrower than `x`, see [`narrow_weights`](super::narrow_weights).
///
/// On the CPU a 3 × 3 layer of stride 1 with 16 channels or more on both sides may compute tiles of 2 × 2 or 4 × 4
/// pixels by Winograd's method. A pixel that is infinite or NaN may then make all of a tile non-finite that reads it,
/// beyond the pixels that depend on it, but no other tile and no other image. A non-finite weight may reach all of its
/// output channel.
///
/// # Shapes
/// - `x`: `[B, C_in, H, W]`
/// - result: `[B, C_out, H', W']`
///
/// # Panics
/// If the channels of `x` are not the layer's.
pub fn conv2d(layer: &Conv2d, x: Tensor<4>) -> Tensor<4> {
    apply(layer, ConvInput { x, resample: Resample::Keep, residual: None })
}

/// `conv2d(layer, resample(x, how))`, on the CPU without the resampled images in memory.
///
/// # Shapes
/// - `x`: `[B, C_in, H, W]`
/// - result: `[B, C_out, H', W']`
///
/// # Panics
/// If the channels of `x` are not the layer's.
pub fn conv2d_resampled(layer: &Conv2d, x: Tensor<4>, how: Resample) -> Tensor<4> {
    apply(layer, ConvInput { x, resample: how, residual: None })
}

/// `resample(residual, how) + conv2d(layer, x)`, on the CPU without a pass of its own for the sum.
///
/// # Shapes
/// - `x`: `[B, C_in, H, W]`
/// - `residual`, once resampled, and result: `[B, C_out, H', W']`
///
/// # Panics
/// If the channels of `x` are not the layer's, or the residual does not fit the result.
pub fn conv2d_onto(layer: &Conv2d, x: Tensor<4>, residual: Tensor<4>, how: Resample) -> Tensor<4> {
    apply(layer, ConvInput { x, resample: Resample::Keep, residual: Some((residual, how)) })
}

fn apply(layer: &Conv2d, input: ConvInput) -> Tensor<4> {
    let ConvInput { x, residual, .. } = match kernels::convolution(layer, input) {
        Ok(y) => return y,
        Err(input) => input.composed(),
    };
    let plus = |y, residual: Option<(Tensor<4>, Resample)>| match residual {
        Some((residual, _)) => residual + y,
        None => y,
    };
    match kernels::narrow_convolution(layer, x) {
        Ok(y) => plus(y, residual),
        Err(x) => {
            let layer = conv2d_for(layer, x.dtype());
            let input = ConvInput { x, resample: Resample::Keep, residual };
            kernels::convolution(&layer, input).unwrap_or_else(|input| plus(layer.forward(input.x), input.residual))
        }
    }
}

impl ConvInput {
    /// The same with nothing left to resample.
    fn composed(self) -> Self {
        let residual = self.residual.map(|(residual, how)| (resample(residual, how), Resample::Keep));
        Self { x: resample(self.x, self.resample), resample: Resample::Keep, residual }
    }
}
