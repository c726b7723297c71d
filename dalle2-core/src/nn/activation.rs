//! Element-wise activations.

use burn::prelude::*;
use burn::tensor::activation;

/// SiLU, `x · σ(x)` (Elfwing et al. 2017, "Sigmoid-weighted linear units", section 2).
///
/// # Shapes
/// Any shape, kept.
pub fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    activation::silu(x)
}

/// GELU in its exact form, `x · Φ(x)` with the normal distribution function Φ (Hendrycks and Gimpel 2016, section 2).
///
/// # Shapes
/// Any shape, kept.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    activation::gelu(x)
}

/// The approximation `x · σ(1.702 x)` of GELU that OpenAI's CLIP weights were trained with (Hendrycks and Gimpel
/// 2016, section 2).
///
/// # Shapes
/// Any shape, kept.
pub fn quick_gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x.clone() * activation::sigmoid(x * QUICK_GELU_SLOPE)
}

/// Slope of the sigmoid in [`quick_gelu`].
const QUICK_GELU_SLOPE: f64 = 1.702;
