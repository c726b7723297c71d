//! Scaled dot-product attention.

use burn::prelude::*;
use burn::tensor::activation::softmax;
use burn::tensor::{DType, FloatDType};

use super::kernels;

/// Scaled dot-product attention, `softmax(q · kᵀ / √Dh) · v` (Vaswani et al. 2017, section 3.2.1).
///
/// The softmax is computed in f32 for every dtype. A query whose keys are all masked out attends to all keys equally, so
/// its result is finite.
///
/// # Shapes
/// - `q`: `[B, heads, Sq, Dh]`; `k`, `v`: `[B, heads, Sk, Dh]`
/// - `mask`: broadcastable to `[B, heads, Sq, Sk]`, for example `[B, 1, Sq, Sk]` or `[1, 1, Sq, Sk]`; `true` is masked out
/// - result: `[B, heads, Sq, Dh]`
///
/// # Panics
/// If the shapes are incompatible.
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, mask: Option<Tensor<4, Bool>>) -> Tensor<4> {
    let [b, heads, _, d_head] = q.dims();
    let s_k = k.dims()[2];
    assert_eq!(k.dims(), [b, heads, s_k, d_head], "attention: the shape of k is incompatible with q {:?}", q.dims());
    assert_eq!(v.dims(), [b, heads, s_k, d_head], "attention: the shape of v is incompatible with k {:?}", k.dims());
    match kernels::attention(&q, &k, &v, mask.as_ref()) {
        Some(y) => y,
        None => composed_weights(q, k, mask).matmul(v),
    }
}

/// `softmax(q · kᵀ / √Dh)` composed of Burn's operations, `[B, heads, Sq, Sk]`.
fn composed_weights(q: Tensor<4>, k: Tensor<4>, mask: Option<Tensor<4, Bool>>) -> Tensor<4> {
    let dtype = q.dtype();
    let scale = (q.dims()[3] as f64).powf(-0.5);
    let scores = (q * scale).matmul(k.swap_dims(2, 3));
    let scores = if dtype == DType::F32 { scores } else { scores.cast(FloatDType::F32) };
    let scores = match mask {
        Some(mask) => {
            let shape = scores.dims();
            scores.mask_fill(mask.expand(shape), f32::MIN)
        }
        None => scores,
    };
    let weights = softmax(scores, 3);
    if dtype == DType::F32 { weights } else { weights.cast(FloatDType::from(dtype)) }
}
