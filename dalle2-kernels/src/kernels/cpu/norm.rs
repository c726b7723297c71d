//! Group normalisation fused with FiLM and SiLU, one group at a time.
//!
//! With x̂ = (x − μ) / √(σ² + ε) per group, the result is `y = f((x̂ · γ + β) · (1 + scale) + shift)`, where f is SiLU or
//! the identity, and scale and shift are per item and channel. Groups fit a cache, so memory is read once.

use macerator::{Scalar, Simd, WithSimd};
use rayon::prelude::*;

use super::elementwise::{Function, Silu};
use super::parallel::{for_each, vectorized};
use super::raw::{sum, sum_pairs, update, update_with};

/// Parameters of a group norm over `[B, C, pixels]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GroupNormShape {
    /// C, a multiple of `groups`.
    pub channels: usize,
    /// Number of groups.
    pub groups: usize,
    /// H · W.
    pub pixels: usize,
    /// ε
    pub epsilon: f32,
    /// Whether SiLU follows.
    pub silu: bool,
}

/// The affine map after the normalisation: γ and β `[C]`, and scale and shift `[B, C]` of FiLM.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Affine<'a> {
    /// γ
    pub gamma: &'a [f32],
    /// β
    pub beta: &'a [f32],
    /// (scale, shift)
    pub film: Option<(&'a [f32], &'a [f32])>,
}

/// Mean and 1/√(σ² + ε) of a group.
pub(crate) type Moments = (f32, f32);

impl GroupNormShape {
    /// Elements of a group of one item.
    pub(crate) fn group(&self) -> usize {
        self.channels / self.groups * self.pixels
    }
}

/// Computes the moments of a slice.
#[inline(always)]
pub(crate) fn moments<S: Simd>(x: &[f32], epsilon: f32) -> Moments {
    let n = x.len() as f64;
    let mean = (sum::<S>(x, |x| x) / n) as f32;
    let center = mean.splat::<S>();
    let variance = sum::<S>(x, |x| (x - center) * (x - center)) / n;
    let (mean, variance) = if variance.is_finite() { (mean, variance) } else { wide_moments(x) };
    (mean, (1.0 / (variance + f64::from(epsilon)).sqrt()) as f32)
}

/// Computes mean and σ² in f64, for elements whose sum of squares overflows f32.
#[cold]
#[inline(never)]
fn wide_moments(x: &[f32]) -> (f32, f64) {
    let n = x.len() as f64;
    let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
    let variance = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n;
    (mean as f32, variance)
}

impl Affine<'_> {
    /// Returns `γ · (1 + scale)` and `β · (1 + scale) + shift` of row `b · C + c`.
    fn row(&self, row: usize, channel: usize) -> (f32, f32) {
        let (gamma, beta) = (self.gamma[channel], self.beta[channel]);
        match self.film {
            Some((scale, shift)) => (gamma * (1.0 + scale[row]), beta * (1.0 + scale[row]) + shift[row]),
            None => (gamma, beta),
        }
    }
}

/// Normalises the `group`-th group of the batch in place and returns its moments.
pub(crate) fn normalize(shape: &GroupNormShape, affine: &Affine<'_>, group: usize, y: &mut [f32]) -> Moments {
    let first_row = group * (shape.channels / shape.groups);
    vectorized(Normalize { shape, affine, first_row, y })
}

/// Replaces the output gradient in `grad` by the input gradient, and returns Σ dz and Σ dz · x̂ per row, where dz is the
/// gradient at the input of f.
pub(crate) fn backward(
    shape: &GroupNormShape,
    affine: &Affine<'_>,
    moments: &[Moments],
    x: &[f32],
    grad: &mut [f32],
) -> Vec<(f32, f32)> {
    let rows = shape.channels / shape.groups;
    let (block, elements) = (rows * shape.pixels, grad.len());
    let mut sums = vec![(0.0, 0.0); elements / shape.pixels];
    let items = grad.par_chunks_mut(block).zip(sums.par_chunks_mut(rows));
    for_each(items, elements, |group, (grad, sums)| {
        let x = &x[group * block..][..block];
        vectorized(Gradient { shape, affine, first_row: group * rows, moments: moments[group], x, grad, sums });
    });
    sums
}

/// Gradients of [`Affine`].
#[derive(Debug)]
pub(crate) struct AffineGradients {
    /// `[C]`
    pub gamma: Vec<f32>,
    /// `[C]`
    pub beta: Vec<f32>,
    /// `[B, C]` each
    pub film: Option<(Vec<f32>, Vec<f32>)>,
}

/// Computes the gradients of the parameters from the sums of [`backward`].
pub(crate) fn affine_gradients(channels: usize, affine: &Affine<'_>, sums: &[(f32, f32)]) -> AffineGradients {
    let (mut gamma, mut beta) = (vec![0.0; channels], vec![0.0; channels]);
    for (row, (dz, dz_x_hat)) in sums.iter().enumerate() {
        let factor = affine.film.map_or(1.0, |(scale, _)| 1.0 + scale[row]);
        gamma[row % channels] += factor * dz_x_hat;
        beta[row % channels] += factor * dz;
    }
    let film = affine.film.map(|_| {
        let scale = sums.iter().enumerate().map(|(row, (dz, dz_x_hat))| {
            let channel = row % channels;
            affine.gamma[channel] * dz_x_hat + affine.beta[channel] * dz
        });
        (scale.collect(), sums.iter().map(|(dz, _)| *dz).collect())
    });
    AffineGradients { gamma, beta, film }
}

struct Normalize<'a> {
    shape: &'a GroupNormShape,
    affine: &'a Affine<'a>,
    first_row: usize,
    y: &'a mut [f32],
}

impl WithSimd for Normalize<'_> {
    type Output = Moments;

    #[inline(always)]
    fn with_simd<S: Simd>(self) -> Moments {
        let (mean, rstd) = moments::<S>(self.y, self.shape.epsilon);
        for (i, y) in self.y.chunks_exact_mut(self.shape.pixels).enumerate() {
            let row = self.first_row + i;
            let (a, b) = self.affine.row(row, row % self.shape.channels);
            let [center, a, b] = [mean, a * rstd, b].map(|value| value.splat::<S>());
            if self.shape.silu {
                update(y, |y| Silu::value((y - center).mul_add(a, b)));
            } else {
                update(y, |y| (y - center).mul_add(a, b));
            }
        }
        (mean, rstd)
    }
}

struct Gradient<'a> {
    shape: &'a GroupNormShape,
    affine: &'a Affine<'a>,
    first_row: usize,
    moments: Moments,
    x: &'a [f32],
    grad: &'a mut [f32],
    sums: &'a mut [(f32, f32)],
}

impl WithSimd for Gradient<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        let (mean, rstd) = self.moments;
        let center = mean.splat::<S>();
        let pixels = self.shape.pixels;
        let (mut sum_grad, mut sum_product) = (0.0, 0.0);
        for (i, (grad, x)) in self.grad.chunks_exact_mut(pixels).zip(self.x.chunks_exact(pixels)).enumerate() {
            let row = self.first_row + i;
            let (a, b) = self.affine.row(row, row % self.shape.channels);
            if self.shape.silu {
                let [a, b] = [a * rstd, b].map(|value| value.splat::<S>());
                update_with(grad, x, |grad, x| grad * Silu::slope((x - center).mul_add(a, b)));
            }
            let dz = sum::<S>(grad, |g| g);
            let dz_x_hat = sum_pairs::<S>(grad, x, |g, x| g * (x - center)) * f64::from(rstd);
            self.sums[i] = (dz as f32, dz_x_hat as f32);
            sum_grad += f64::from(a) * dz;
            sum_product += f64::from(a) * dz_x_hat;
        }
        // dx = (a · dz − mean(a · dz) − x̂ · mean(a · dz · x̂)) / √(σ² + ε), with means over the group.
        let n = self.x.len() as f64;
        let constant = ((-sum_grad / n) as f32 * rstd).splat::<S>();
        // In f64: the square of rstd may underflow in f32.
        let linear = ((-sum_product / n) * f64::from(rstd).powi(2)) as f32;
        let linear = linear.splat::<S>();
        for (i, (grad, x)) in self.grad.chunks_exact_mut(pixels).zip(self.x.chunks_exact(pixels)).enumerate() {
            let row = self.first_row + i;
            let a = (self.affine.row(row, row % self.shape.channels).0 * rstd).splat::<S>();
            update_with::<S>(grad, x, |grad, x| grad.mul_add(a, (x - center).mul_add(linear, constant)));
        }
    }
}

/// Σ x
pub(crate) fn total(x: &[f32]) -> f64 {
    vectorized(Total(x))
}

struct Total<'a>(&'a [f32]);

impl WithSimd for Total<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self) -> f64 {
        sum::<S>(self.0, |x| x)
    }
}
