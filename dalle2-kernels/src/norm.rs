//! Group normalisation fused with FiLM and SiLU, and L2 normalisation.

use burn::nn::GroupNorm;
use burn::prelude::*;
use burn::tensor::{DType, FloatDType};

use super::{kernels, silu};

/// Group normalisation with statistics in f32 (Wu and He 2018, section 3).
///
/// # Shapes
/// - `x`, result: `[B, C, H, W]`
///
/// # Panics
/// If C differs from the layer.
pub fn group_norm(layer: &GroupNorm, x: Tensor<4>) -> Tensor<4> {
    check_channels(layer, &x);
    kernels::group_norm(layer, x, None, false).unwrap_or_else(|x| in_f32(x, |x| normalize_groups(layer, x)))
}

/// [`group_norm`], then [`silu`].
///
/// # Shapes
/// - `x`, result: `[B, C, H, W]`
///
/// # Panics
/// If C differs from the layer.
pub fn group_norm_silu(layer: &GroupNorm, x: Tensor<4>) -> Tensor<4> {
    check_channels(layer, &x);
    kernels::group_norm(layer, x, None, true).unwrap_or_else(|x| in_f32(x, |x| silu(normalize_groups(layer, x))))
}

/// [`group_norm`], a feature-wise affine map, then [`silu`]: `silu(gn(x) · (1 + scale) + shift)`.
///
/// Timestep and condition enter a residual block this way (Dhariwal and Nichol 2021, section 3, "adaptive group
/// normalization"; Perez et al. 2018 for FiLM).
///
/// # Shapes
/// - `x`, result: `[B, C, H, W]`
/// - `scale`, `shift`: `[B, C]`
///
/// # Panics
/// If C differs from the layer, or the shape of scale or shift is not `[B, C]`.
pub fn group_norm_film_silu(layer: &GroupNorm, x: Tensor<4>, scale: Tensor<2>, shift: Tensor<2>) -> Tensor<4> {
    let [b, c, _, _] = x.dims();
    assert_eq!(scale.dims(), [b, c], "group_norm_film_silu: scale must have the shape [B, C] of x {:?}", x.dims());
    assert_eq!(shift.dims(), [b, c], "group_norm_film_silu: shift must have the shape [B, C] of x {:?}", x.dims());
    check_channels(layer, &x);
    kernels::group_norm(layer, x, Some((&scale, &shift)), true).unwrap_or_else(|x| {
        in_f32(x, |x| {
            let scale = to_f32(scale).reshape([b, c, 1, 1]) + 1.0;
            let shift = to_f32(shift).reshape([b, c, 1, 1]);
            silu(normalize_groups(layer, x) * scale + shift)
        })
    })
}

/// Divides each row by its length, or by 1e-12 if it is shorter, so that zero rows stay zero with a finite gradient.
///
/// # Shapes
/// - `x`, result: `[B, D]`
pub fn l2_normalize(x: Tensor<2>) -> Tensor<2> {
    in_f32(x, |x| {
        // Clamping before the root gives a gradient of 0 at 0, where the root alone has an infinite one.
        let squared = x.clone().square().sum_dim(1).clamp_min(MIN_LENGTH * MIN_LENGTH); // [B, 1]
        x / squared.sqrt()
    })
}

/// Length of the shortest row that [`l2_normalize`] scales to unit length.
const MIN_LENGTH: f64 = 1e-12;

fn check_channels(layer: &GroupNorm, x: &Tensor<4>) {
    let (shape, channels) = (x.dims(), layer.num_channels);
    assert_eq!(shape[1], channels, "group_norm: axis 1 of {shape:?} must be {channels}");
}

/// `(x − mean) / √(variance + ε) · γ + β` per group, in the dtype of `x`.
fn normalize_groups(layer: &GroupNorm, x: Tensor<4>) -> Tensor<4> {
    let [b, c, h, w] = x.dims();
    let x = x.reshape([b, layer.num_groups, c / layer.num_groups * h * w]); // [B, C, H, W] -> [B, groups, rest]
    let x = x.clone() - x.mean_dim(2);
    let variance = x.clone().square().mean_dim(2);
    let x = (x / (variance + layer.epsilon).sqrt()).reshape([b, c, h, w]);
    let per_channel = |parameter: Tensor<1>| to_f32(parameter).reshape([1, c, 1, 1]);
    let x = match &layer.gamma {
        Some(gamma) => x * per_channel(gamma.val()),
        None => x,
    };
    match &layer.beta {
        Some(beta) => x + per_channel(beta.val()),
        None => x,
    }
}

/// Runs `f` in f32 and casts back to the dtype of `x`.
fn in_f32<const D: usize>(x: Tensor<D>, f: impl FnOnce(Tensor<D>) -> Tensor<D>) -> Tensor<D> {
    match x.dtype() {
        DType::F32 | DType::F64 => f(x),
        dtype => f(x.cast(FloatDType::F32)).cast(FloatDType::from(dtype)),
    }
}

/// Casts f16 and bf16 to f32.
fn to_f32<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    match x.dtype() {
        DType::F32 | DType::F64 => x,
        _ => x.cast(FloatDType::F32),
    }
}
