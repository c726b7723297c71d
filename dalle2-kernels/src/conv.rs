//! Two-dimensional convolution, with what stands before and after it.

use burn::nn::conv::Conv2d;
use burn::prelude::*;
use burn::tensor::DType;

use super::kernels::{self, ConvInput};
use super::{Resample, cast::conv2d_for, resample};

/// Applies a convolution layer. The weight may be narrower than `x`, see [`cast_weights`](super::cast_weights).
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

/// `conv2d(layer, resample(x, how))`. Without gradients, and where the CPU computes the layer by tiles (see [`conv2d`]),
/// the resampled images are not made.
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

/// `resample(residual, how) + conv2d(layer, x)`. Where the CPU computes the layer by tiles, or pixel by pixel, the sum is
/// made as the result is written.
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

fn apply(layer: &Conv2d, mut input: ConvInput) -> Tensor<4> {
    if layer.weight.val().dtype() == DType::BF16 {
        let ConvInput { x, resample, residual } = input.composed();
        match kernels::conv_bf16(layer, x) {
            Ok(y) => return plus(y, residual),
            Err(x) => input = ConvInput { x, resample, residual },
        }
    }
    let layer = conv2d_for(layer, input.x.dtype());
    let input = match kernels::convolution(&layer, input) {
        Ok(y) => return y,
        Err(input) => input.composed(),
    };
    match kernels::convolution(&layer, input) {
        Ok(y) => y,
        Err(ConvInput { x, residual, .. }) => plus(layer.forward(x), residual),
    }
}

/// The sum with a residual that nothing has to be done to.
fn plus(y: Tensor<4>, residual: Option<(Tensor<4>, Resample)>) -> Tensor<4> {
    let Some((residual, _)) = residual else { return y };
    let (found, expected) = (residual.dims(), y.dims());
    assert_eq!(found, expected, "conv2d_onto: the residual {found:?} must be as the result, {expected:?}");
    residual + y
}

impl ConvInput {
    /// The same with nothing left to resample.
    fn composed(self) -> Self {
        let residual = self.residual.map(|(residual, how)| (resample(residual, how), Resample::Keep));
        Self { x: resample(self.x, self.resample), resample: Resample::Keep, residual }
    }
}
