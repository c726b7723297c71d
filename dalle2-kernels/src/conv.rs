//! Two-dimensional convolution, fused with resampling and residual additions.

use burn::nn::conv::Conv2d;
use burn::prelude::*;
use burn::tensor::DType;

use super::kernels::{self, ConvInput};
use super::{Resample, cast::conv2d_for, resample};

/// Applies a convolution layer. The weight may have 16 bits and `x` 32, see [`cast_weights`](super::cast_weights).
///
/// On the CPU a 3 × 3 layer of stride 1 with at least 16 input and output channels may compute tiles of 2 × 2 or 4 × 4
/// pixels by Winograd's method. An infinite or NaN pixel may then make every tile that reads it non-finite, not only the
/// pixels that depend on it, but no other tile and no other image. A non-finite weight may affect its full output channel.
///
/// # Shapes
/// - `x`: `[B, C_in, H, W]`
/// - result: `[B, C_out, H', W']`
///
/// # Panics
/// If the channels of `x` differ from the layer.
pub fn conv2d(layer: &Conv2d, x: Tensor<4>) -> Tensor<4> {
    apply(layer, ConvInput { x, resample: Resample::Keep, residual: None })
}

/// `conv2d(layer, resample(x, how))`. Without gradients, and where the CPU computes tiles (see [`conv2d`]), the resampled
/// images are not materialised.
///
/// # Shapes
/// - `x`: `[B, C_in, H, W]`
/// - result: `[B, C_out, H', W']`
///
/// # Panics
/// If the channels of `x` differ from the layer.
pub fn conv2d_resampled(layer: &Conv2d, x: Tensor<4>, how: Resample) -> Tensor<4> {
    apply(layer, ConvInput { x, resample: how, residual: None })
}

/// `resample(residual, how) + conv2d(layer, x)`. Where the CPU computes tiles or a 1 × 1 layer, the addition is fused with
/// the write of the result.
///
/// # Shapes
/// - `x`: `[B, C_in, H, W]`
/// - resampled `residual`, result: `[B, C_out, H', W']`
///
/// # Panics
/// If the channels of `x` are not the layer's, or the residual does not fit the result.
pub fn conv2d_add(layer: &Conv2d, x: Tensor<4>, residual: Tensor<4>, how: Resample) -> Tensor<4> {
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

/// Adds a residual that needs no resampling.
fn plus(y: Tensor<4>, residual: Option<(Tensor<4>, Resample)>) -> Tensor<4> {
    let Some((residual, _)) = residual else { return y };
    let (actual, expected) = (residual.dims(), y.dims());
    assert_eq!(actual, expected, "conv2d_add: residual and result must have equal shapes");
    residual + y
}

impl ConvInput {
    /// Resamples with Burn's operations.
    fn composed(self) -> Self {
        let residual = self.residual.map(|(residual, how)| (resample(residual, how), Resample::Keep));
        Self { x: resample(self.x, self.resample), resample: Resample::Keep, residual }
    }
}
