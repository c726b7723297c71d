//! Linear layers.

use burn::nn::Linear;
use burn::prelude::*;
use burn::tensor::DType;

use super::{cast::linear_for, kernels};

/// Applies `x · W + b` over the last axis.
///
/// The leading axes are flattened first, so that the weight gradient is one product over all rows instead of a sum over a
/// batch. The weight may have 16 bits and `x` 32, see [`cast_weights`](super::cast_weights).
///
/// # Shapes
/// - `x`: `[.., d_input]`
/// - result: `[.., d_output]`
///
/// # Panics
/// If the last axis of `x` is not the layer's `d_input`.
pub fn linear<const D: usize>(layer: &Linear, x: Tensor<D>) -> Tensor<D> {
    let (x, shape) = flatten(layer, x);
    linear_rows(layer, x).reshape(shape)
}

/// `residual + linear(layer, x)`. On the CPU the product is accumulated onto the residual, unless the weight is in bf16.
///
/// # Shapes
/// - `x`: `[.., d_input]`
/// - `residual`, result: `[.., d_output]`
///
/// # Panics
/// If the last axis of `x` is not the layer's `d_input`, or the shape of the residual differs from the result.
pub fn linear_add<const D: usize>(layer: &Linear, x: Tensor<D>, residual: Tensor<D>) -> Tensor<D> {
    let (x, shape) = flatten(layer, x);
    assert_eq!(residual.dims(), shape, "linear_add: residual and result must have equal shapes");
    let residual = residual.reshape([x.dims()[0], shape[D - 1]]);
    let y = if layer.weight.val().dtype() == DType::BF16 {
        residual + linear_rows(layer, x)
    } else {
        kernels::linear_add(&linear_for(layer, x.dtype()), x, residual)
            .unwrap_or_else(|[x, residual]| residual + linear_rows(layer, x))
    };
    y.reshape(shape)
}

/// `x` as `[rows, d_input]`, and the shape of the result.
fn flatten<const D: usize>(layer: &Linear, x: Tensor<D>) -> (Tensor<2>, [usize; D]) {
    let [d_input, d_output] = layer.weight.dims();
    let mut shape = x.dims();
    assert_eq!(shape[D - 1], d_input, "linear: the last axis of {shape:?} must be {d_input}");
    let rows = shape[..D - 1].iter().product::<usize>();
    shape[D - 1] = d_output;
    (x.reshape([rows, d_input]), shape)
}

/// `[rows, d_input]` -> `[rows, d_output]`
fn linear_rows(layer: &Linear, x: Tensor<2>) -> Tensor<2> {
    kernels::linear_bf16(layer, x).unwrap_or_else(|x| {
        let layer = linear_for(layer, x.dtype());
        kernels::linear(&layer, x).unwrap_or_else(|x| layer.forward(x))
    })
}
