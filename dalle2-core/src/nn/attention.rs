//! Scaled dot-product attention.

use burn::prelude::*;
use burn::tensor::activation::softmax;
use burn::tensor::{DType, FloatDType};

/// Scaled dot-product attention, `softmax(q · kᵀ / √Dh) · v` (Vaswani et al. 2017, section 3.2.1).
///
/// The softmax runs in f32 whatever the dtype of the inputs. A query for which every key is masked out attends to all
/// keys alike, so its result is finite.
///
/// # Shapes
/// - `q`: `[B, heads, Sq, Dh]`; `k`, `v`: `[B, heads, Sk, Dh]`
/// - `mask`: broadcastable to `[B, heads, Sq, Sk]`, for example `[B, 1, Sq, Sk]` or `[1, 1, Sq, Sk]`; `true` is masked out
/// - result: `[B, heads, Sq, Dh]`
///
/// # Panics
/// If the shapes do not fit.
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, mask: Option<Tensor<4, Bool>>) -> Tensor<4> {
    let [b, heads, s_q, d_head] = q.dims();
    let s_k = k.dims()[2];
    assert_eq!(k.dims(), [b, heads, s_k, d_head], "attention: k must fit q {:?}", q.dims());
    assert_eq!(v.dims(), [b, heads, s_k, d_head], "attention: v must fit k {:?}", k.dims());
    let dtype = v.dtype();

    let scores = (q * (d_head as f64).powf(-0.5)).matmul(k.swap_dims(2, 3)); // [B, heads, Sq, Sk]
    let scores = if dtype == DType::F32 { scores } else { scores.cast(FloatDType::F32) };
    let scores = match mask {
        Some(mask) => scores.mask_fill(mask.expand([b, heads, s_q, s_k]), f32::MIN),
        None => scores,
    };
    let weights = softmax(scores, 3);
    let weights = if dtype == DType::F32 { weights } else { weights.cast(FloatDType::from(dtype)) };
    weights.matmul(v)
}
