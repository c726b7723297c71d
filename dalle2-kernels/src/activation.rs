//! Element-wise activations.

use burn::prelude::*;
use burn::tensor::activation;

use super::kernels::{self, Elementwise};

/// SiLU, `x · σ(x)` (Elfwing et al. 2017, "Sigmoid-weighted linear units", section 2).
///
/// # Shapes
/// `x` and the result have the same shape.
pub fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    kernels::activation(Elementwise::Silu, x).unwrap_or_else(activation::silu)
}

/// GELU in its exact form, `x · Φ(x)` with the normal distribution function Φ (Hendrycks and Gimpel 2016, section 2).
///
/// On the CPU in f32 the error is at most 1e-7 · max(1, |x|). The result at −∞ is 0, where the formula gives NaN.
///
/// # Shapes
/// `x` and the result have the same shape.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    kernels::activation(Elementwise::Gelu, x).unwrap_or_else(activation::gelu)
}

/// The approximation `x · σ(1.702 x)` of GELU that OpenAI's CLIP weights were trained with (Hendrycks and Gimpel
/// 2016, section 2).
///
/// # Shapes
/// `x` and the result have the same shape.
pub fn quick_gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    kernels::activation(Elementwise::QuickGelu, x).unwrap_or_else(composed_quick_gelu)
}

/// [`quick_gelu`] composed of Burn's operations.
fn composed_quick_gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x.clone() * activation::sigmoid(x * 1.702)
}
