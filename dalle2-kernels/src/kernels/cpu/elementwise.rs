//! Activations over slices, and their gradients.

use macerator::{Scalar, Simd, WithSimd};

use super::Elementwise;
use super::math::{gaussian, normal_tail, sigmoid};
use super::parallel::{MIN_PARALLEL_LEN, vectorized, zip_chunks};
use super::raw::{RowMap, V, map_rows, map_rows_in_place, update_with};

/// Slope of the sigmoid in quick GELU.
pub(crate) const QUICK_GELU_SLOPE: f32 = 1.702;

/// Elements per task.
const TASK_LEN: usize = MIN_PARALLEL_LEN;

/// A scalar function and its derivative.
pub(crate) trait Function: Sync {
    /// f(x)
    fn value<S: Simd>(x: V<S>) -> V<S>;
    /// f′(x)
    fn slope<S: Simd>(x: V<S>) -> V<S>;
}

/// [`Elementwise::Silu`] as a type.
pub(crate) struct Silu;
/// [`Elementwise::Gelu`] as a type.
pub(crate) struct Gelu;
/// [`Elementwise::QuickGelu`] as a type.
pub(crate) struct QuickGelu;

impl Function for Silu {
    #[inline(always)]
    fn value<S: Simd>(x: V<S>) -> V<S> {
        x * sigmoid(x)
    }

    #[inline(always)]
    fn slope<S: Simd>(x: V<S>) -> V<S> {
        let (s, one) = (sigmoid(x), 1.0.splat());
        s * x.mul_add(one - s, one)
    }
}

impl Function for QuickGelu {
    #[inline(always)]
    fn value<S: Simd>(x: V<S>) -> V<S> {
        x * sigmoid(x * QUICK_GELU_SLOPE.splat())
    }

    #[inline(always)]
    fn slope<S: Simd>(x: V<S>) -> V<S> {
        Silu::slope(x * QUICK_GELU_SLOPE.splat())
    }
}

impl Function for Gelu {
    #[inline(always)]
    fn value<S: Simd>(x: V<S>) -> V<S> {
        let (a, tail) = normal_tail(x);
        let zero = 0.0.splat();
        // A selection propagates NaN.
        let positive = x.lt(zero).select(zero, x);
        (zero - a).mul_add(tail, positive)
    }

    #[inline(always)]
    fn slope<S: Simd>(x: V<S>) -> V<S> {
        const INV_SQRT_TAU: f32 = 0.398_942_3;
        let (_, tail) = normal_tail(x);
        let zero = 0.0.splat();
        let cdf = x.gt(zero).select(1.0.splat::<S>() - tail, tail);
        x.mul_add(gaussian(x) * INV_SQRT_TAU.splat(), cdf)
    }
}

impl<F: Function> RowMap<0> for F {
    type Summary = ();

    fn parameters(&self) -> [&[f32]; 0] {
        []
    }

    #[inline(always)]
    fn summary<S: Simd>(&self, _: &[f32]) {}

    #[inline(always)]
    fn value<S: Simd>(&self, (): (), x: V<S>, []: [V<S>; 0]) -> V<S> {
        F::value(x)
    }
}

/// Returns `f(x)` of every element.
pub(crate) fn map(function: Elementwise, x: &[f32]) -> Vec<f32> {
    match function {
        Elementwise::Silu => map_rows(&Silu, x, TASK_LEN).0,
        Elementwise::Gelu => map_rows(&Gelu, x, TASK_LEN).0,
        Elementwise::QuickGelu => map_rows(&QuickGelu, x, TASK_LEN).0,
    }
}

/// Replaces every element by `f(x)`.
pub(crate) fn map_in_place(function: Elementwise, x: &mut [f32]) {
    match function {
        Elementwise::Silu => drop(map_rows_in_place(&Silu, x, TASK_LEN)),
        Elementwise::Gelu => drop(map_rows_in_place(&Gelu, x, TASK_LEN)),
        Elementwise::QuickGelu => drop(map_rows_in_place(&QuickGelu, x, TASK_LEN)),
    }
}

/// Multiplies `grad` by `f′(x)`.
pub(crate) fn scale_by_slope(function: Elementwise, grad: &mut [f32], x: &[f32]) {
    zip_chunks(grad, x, |grad, x| match function {
        Elementwise::Silu => vectorized(Slope::<Silu>(grad, x, Silu)),
        Elementwise::Gelu => vectorized(Slope::<Gelu>(grad, x, Gelu)),
        Elementwise::QuickGelu => vectorized(Slope::<QuickGelu>(grad, x, QuickGelu)),
    });
}

struct Slope<'a, F>(&'a mut [f32], &'a [f32], F);

impl<F: Function> WithSimd for Slope<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        update_with::<S>(self.0, self.1, |grad, x| grad * F::slope(x));
    }
}
