//! Affine maps over the last axis.

use burn::nn::Linear;
use burn::prelude::*;

use super::{kernels, narrow::linear_for};

/// Applies `x · W + b` over the last axis.
///
/// The leading axes are flattened first: the gradient of the weights is then one product over all rows instead of a
/// batch of small ones that has to be summed. The weight may be narrower than `x`, see
/// [`narrow_weights`](super::narrow_weights).
///
/// # Shapes
/// - `x`: `[.., d_input]`
/// - result: `[.., d_output]`
///
/// # Panics
/// If the last axis of `x` is not the layer's `d_input`.
pub fn linear<const D: usize>(layer: &Linear, x: Tensor<D>) -> Tensor<D> {
    let [d_input, d_output] = layer.weight.dims();
    let mut shape = x.dims();
    assert_eq!(shape[D - 1], d_input, "linear: the last axis of {shape:?} must be {d_input}");
    let rows = shape[..D - 1].iter().product::<usize>();
    shape[D - 1] = d_output;
    let x = x.reshape([rows, d_input]);
    let y = kernels::narrow_linear(layer, x).unwrap_or_else(|x| {
        let layer = linear_for(layer, x.dtype());
        kernels::linear(&layer, x).unwrap_or_else(|x| layer.forward(x))
    }); // [rows, d_output]
    y.reshape(shape)
}
