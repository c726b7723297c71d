//! Normalisation layers, with the operations that follow them in a residual block.

use burn::nn::GroupNorm;
use burn::prelude::*;
use burn::tensor::{DType, FloatDType};

use super::{kernels, silu};

/// Group normalisation with statistics in f32 (Wu and He 2018, section 3).
///
/// # Shapes
/// - `x`: `[B, C, H, W]`, kept
///
/// # Panics
/// If C is not the layer's number of channels.
pub fn group_norm(layer: &GroupNorm, x: Tensor<4>) -> Tensor<4> {
    check_channels(layer, &x);
    kernels::group_norm(layer, x, None, false).unwrap_or_else(|x| in_f32(x, |x| normalize_groups(layer, x)))
}

/// [`group_norm`], then [`silu`].
///
/// # Shapes
/// - `x`: `[B, C, H, W]`, kept
///
/// # Panics
/// If C is not the layer's number of channels.
pub fn group_norm_silu(layer: &GroupNorm, x: Tensor<4>) -> Tensor<4> {
    check_channels(layer, &x);
    kernels::group_norm(layer, x, None, true).unwrap_or_else(|x| in_f32(x, |x| silu(normalize_groups(layer, x))))
}

/// [`group_norm`], a feature-wise affine map, then [`silu`]: `silu(gn(x) · (1 + scale) + shift)`.
///
/// This is how timestep and condition enter a residual block (Dhariwal and Nichol 2021, section 3, "adaptive group
/// normalization"; Perez et al. 2018 for FiLM).
///
/// # Shapes
/// - `x`: `[B, C, H, W]`, kept
/// - `scale`, `shift`: `[B, C]`
///
/// # Panics
/// If C is not the layer's number of channels, or scale or shift are not `[B, C]`.
pub fn group_norm_film_silu(layer: &GroupNorm, x: Tensor<4>, scale: Tensor<2>, shift: Tensor<2>) -> Tensor<4> {
    let [b, c, _, _] = x.dims();
    assert_eq!(scale.dims(), [b, c], "group_norm_film_silu: scale must be [B, C] of x {:?}", x.dims());
    assert_eq!(shift.dims(), [b, c], "group_norm_film_silu: shift must be [B, C] of x {:?}", x.dims());
    check_channels(layer, &x);
    kernels::group_norm(layer, x, Some((&scale, &shift)), true).unwrap_or_else(|x| {
        in_f32(x, |x| {
            let scale = widen(scale).reshape([b, c, 1, 1]) + 1.0;
            let shift = widen(shift).reshape([b, c, 1, 1]);
            silu(normalize_groups(layer, x) * scale + shift)
        })
    })
}

/// Scales each row to unit length; a row shorter than 1e-12 is divided by 1e-12 instead, so zero stays zero with a
/// finite gradient.
///
/// # Shapes
/// - `x`: `[B, D]`, kept
pub fn l2_normalize(x: Tensor<2>) -> Tensor<2> {
    in_f32(x, |x| {
        // The clamp stands before the root: its gradient there is 0, where that of the root at 0 would be infinite.
        let squared = x.clone().square().sum_dim(1).clamp_min(MIN_LENGTH * MIN_LENGTH); // [B, 1]
        x / squared.sqrt()
    })
}

/// Shortest row that [`l2_normalize`] still brings to unit length.
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
    let per_channel = |parameter: Tensor<1>| widen(parameter).reshape([1, c, 1, 1]);
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
        narrow => f(x.cast(FloatDType::F32)).cast(FloatDType::from(narrow)),
    }
}

/// Casts dtypes narrower than f32 to f32.
fn widen<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    match x.dtype() {
        DType::F32 | DType::F64 => x,
        _ => x.cast(FloatDType::F32),
    }
}
