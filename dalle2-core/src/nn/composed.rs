//! Plain compositions of the hot operations: a stand-in, to be deleted when the tuned ones arrive.

use burn::nn::{LayerNorm, Linear, conv::Conv2d};
use burn::prelude::*;
use burn::tensor::activation;

/// x·Φ(x)
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    activation::gelu(x)
}
/// x·σ(1.702 x)
pub fn quick_gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x.clone() * activation::sigmoid(x * 1.702)
}
/// Linear layer
pub fn linear<const D: usize>(layer: &Linear, x: Tensor<D>) -> Tensor<D> {
    layer.forward(x)
}
/// Layer norm
pub fn layer_norm<const D: usize>(layer: &LayerNorm, x: Tensor<D>) -> Tensor<D> {
    layer.forward(x)
}
/// Convolution
pub fn conv2d(layer: &Conv2d, x: Tensor<4>) -> Tensor<4> {
    layer.forward(x)
}
/// Attention
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, mask: Option<Tensor<4, Bool>>) -> Tensor<4> {
    let [b, h, s, d] = q.dims();
    let keys = k.dims()[2];
    let mut scores = q.matmul(k.swap_dims(2, 3)) / (d as f64).sqrt();
    if let Some(mask) = mask {
        scores = scores.mask_fill(mask.expand([b, h, s, keys]), -1e9);
    }
    activation::softmax(scores, 3).matmul(v)
}
/// Unit rows
pub fn l2_normalize(x: Tensor<2>) -> Tensor<2> {
    let norm = x.clone().powi_scalar(2).sum_dim(1).clamp_min(1e-24).sqrt();
    x / norm
}
