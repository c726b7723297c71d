//! Affine maps over the last axis.

use burn::nn::Linear;
use burn::prelude::*;

/// Applies `x · W + b` over the last axis.
///
/// The leading axes are flattened first: the gradient of the weights is then one product over all rows instead of a
/// batch of small ones that has to be summed.
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
    let y = layer.forward(x.reshape([rows, d_input])); // [.., d_input] -> [rows, d_output]
    y.reshape(shape)
}
