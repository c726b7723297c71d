//! Activations over slices: values and gradients.

use macerator::{Simd, WithSimd};

use super::Elementwise;
use super::math::{gaussian, normal_cdf, sigmoid};
use super::parallel::{vectorized, zip_chunks};

/// Slope of the sigmoid in quick GELU.
pub const QUICK_GELU_SLOPE: f32 = 1.702;

/// A function of one number and its derivative.
pub trait Function {
    /// f(x)
    fn value<S: Simd>(x: f32) -> f32;
    /// f′(x)
    fn slope<S: Simd>(x: f32) -> f32;
}

/// [`Elementwise::Silu`] as a type.
pub struct Silu;
/// [`Elementwise::Gelu`] as a type.
pub struct Gelu;
/// [`Elementwise::QuickGelu`] as a type.
pub struct QuickGelu;

impl Function for Silu {
    #[inline(always)]
    fn value<S: Simd>(x: f32) -> f32 {
        x * sigmoid::<S>(x)
    }

    #[inline(always)]
    fn slope<S: Simd>(x: f32) -> f32 {
        let s = sigmoid::<S>(x);
        s * (1.0 + x * (1.0 - s))
    }
}

impl Function for QuickGelu {
    #[inline(always)]
    fn value<S: Simd>(x: f32) -> f32 {
        x * sigmoid::<S>(QUICK_GELU_SLOPE * x)
    }

    #[inline(always)]
    fn slope<S: Simd>(x: f32) -> f32 {
        Silu::slope::<S>(QUICK_GELU_SLOPE * x)
    }
}

impl Function for Gelu {
    #[inline(always)]
    fn value<S: Simd>(x: f32) -> f32 {
        x * normal_cdf::<S>(x)
    }

    #[inline(always)]
    fn slope<S: Simd>(x: f32) -> f32 {
        const INV_SQRT_TAU: f32 = 0.398_942_3;
        normal_cdf::<S>(x) + x * (INV_SQRT_TAU * gaussian::<S>(x))
    }
}

/// Replaces each x of a chunk by `f(x)`.
pub fn apply(function: Elementwise, x: &mut [f32]) {
    match function {
        Elementwise::Silu => vectorized(Update::<Silu>(x, Silu)),
        Elementwise::Gelu => vectorized(Update::<Gelu>(x, Gelu)),
        Elementwise::QuickGelu => vectorized(Update::<QuickGelu>(x, QuickGelu)),
    }
}

/// Multiplies `grad` by `f′(x)`.
pub fn scale_by_slope(function: Elementwise, grad: &mut [f32], x: &[f32]) {
    zip_chunks(grad, x, |grad, x| match function {
        Elementwise::Silu => vectorized(Slope::<Silu>(grad, x, Silu)),
        Elementwise::Gelu => vectorized(Slope::<Gelu>(grad, x, Gelu)),
        Elementwise::QuickGelu => vectorized(Slope::<QuickGelu>(grad, x, QuickGelu)),
    });
}

struct Update<'a, F>(&'a mut [f32], F);

impl<F: Function> WithSimd for Update<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        for x in self.0 {
            *x = F::value::<S>(*x);
        }
    }
}

struct Slope<'a, F>(&'a mut [f32], &'a [f32], F);

impl<F: Function> WithSimd for Slope<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        for (grad, x) in self.0.iter_mut().zip(self.1) {
            *grad *= F::slope::<S>(*x);
        }
    }
}
