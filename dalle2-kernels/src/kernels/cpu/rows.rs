//! Operations over the rows of a matrix: layer normalisation and softmax.

use macerator::{Scalar, Simd, WithSimd};
use rayon::prelude::*;

use super::math::exp2_of_negative;
use super::norm::{self, Moments};
use super::parallel::{for_each, vectorized};
use super::raw::{RUN, RowMap, V, load, map, mapped, maximum, store, sum, sum_pairs, update, update_with};

/// Elements of the rows that one task takes.
const TASK: usize = 8 * 1024;

/// Number of rows of `width` elements in a task.
fn rows_per_task(width: usize) -> usize {
    (TASK / width).max(1)
}

/// Layer normalisation, `(x − μ) / √(σ² + ε) · γ + β` for each row.
#[derive(Debug, Clone, Copy)]
pub struct LayerNormRows<'a> {
    /// γ, as wide as a row.
    pub gamma: &'a [f32],
    /// β
    pub beta: &'a [f32],
    /// ε
    pub epsilon: f32,
}

impl LayerNormRows<'_> {
    /// The rows of `x` normalised, and the moments of each.
    pub fn normalized(&self, x: &[f32]) -> (Vec<f32>, Vec<Moments>) {
        mapped(self, x, self.gamma.len())
    }

    /// [`Self::normalized`] in place.
    pub fn normalize(&self, x: &mut [f32]) -> Vec<Moments> {
        map(self, x, self.gamma.len())
    }

    /// Turns the gradient of the result, in `grad`, into that of x, and returns those of γ and β.
    pub fn backward(&self, moments: &[Moments], x: &[f32], grad: &mut [f32]) -> (Vec<f32>, Vec<f32>) {
        let (width, n) = (self.gamma.len(), grad.len());
        let rows = rows_per_task(width);
        let mut partial = vec![0.0; n.div_ceil(rows * width) * 2 * width];
        let tasks = grad.par_chunks_mut(rows * width).zip(partial.par_chunks_mut(2 * width));
        for_each(tasks, n, |task, (grad, partial)| {
            let x = &x[task * rows * width..][..grad.len()];
            let moments = &moments[task * rows..][..grad.len() / width];
            let (gamma, beta) = partial.split_at_mut(width);
            vectorized(RowGradients { norm: self, moments, x, grad, gamma, beta });
        });
        // In the order of the rows, so that the sum does not depend on which thread came first.
        let mut total = vec![0.0; 2 * width];
        for partial in partial.chunks_exact(2 * width) {
            total.iter_mut().zip(partial).for_each(|(total, partial)| *total += partial);
        }
        let beta = total.split_off(width);
        (total, beta)
    }
}

impl RowMap<2> for LayerNormRows<'_> {
    type Summary = Moments;

    fn parameters(&self) -> [&[f32]; 2] {
        [self.gamma, self.beta]
    }

    #[inline(always)]
    fn summary<S: Simd>(&self, row: &[f32]) -> Moments {
        norm::moments::<S>(row, self.epsilon)
    }

    #[inline(always)]
    fn value<S: Simd>(&self, (mean, rstd): Moments, x: V<S>, [gamma, beta]: [V<S>; 2]) -> V<S> {
        let x_hat = (x - mean.splat()) * rstd.splat();
        x_hat.mul_add(gamma, beta)
    }
}

struct RowGradients<'a> {
    norm: &'a LayerNormRows<'a>,
    moments: &'a [Moments],
    x: &'a [f32],
    grad: &'a mut [f32],
    gamma: &'a mut [f32],
    beta: &'a mut [f32],
}

impl WithSimd for RowGradients<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        let width = self.norm.gamma.len();
        let rows = self.grad.chunks_exact_mut(width).zip(self.x.chunks_exact(width));
        for ((grad, x), (mean, rstd)) in rows.zip(self.moments) {
            let [center, scale] = [*mean, *rstd].map(|value| value.splat::<S>());
            for (vector, (grad, x)) in grad.chunks_mut(S::lanes32()).zip(x.chunks(S::lanes32())).enumerate() {
                let columns = vector * S::lanes32()..vector * S::lanes32() + grad.len();
                let (value, x_hat) = (load::<S>(grad), (load::<S>(x) - center) * scale);
                let (of_gamma, of_beta) = (&mut self.gamma[columns.clone()], &mut self.beta[columns.clone()]);
                store(value.mul_add(x_hat, load(of_gamma)), of_gamma);
                store(value + load(of_beta), of_beta);
                store(value * load(&self.norm.gamma[columns]), grad);
            }
            let of_grad = sum::<S>(grad, |g| g) / width as f64;
            let of_product = sum_pairs::<S>(grad, x, |g, x| g * (x - center)) / width as f64;
            // In f64: the powers of rstd may be less than f32 holds.
            let constant = ((-of_grad) as f32 * rstd).splat::<S>();
            let linear = ((-of_product * f64::from(*rstd).powi(3)) as f32).splat::<S>();
            update_with::<S>(grad, x, |grad, x| grad.mul_add(scale, (x - center).mul_add(linear, constant)));
        }
    }
}

/// The sum of each column of rows of `width`.
pub fn column_sums(x: &[f32], width: usize) -> Vec<f32> {
    let task = rows_per_task(width) * width;
    let mut partial = vec![0.0; x.len().div_ceil(task) * width];
    for_each(partial.par_chunks_mut(width).zip(x.par_chunks(task)), x.len(), |_, (sums, x)| {
        vectorized(ColumnSums { x, sums });
    });
    // In the order of the rows, so that the sum does not depend on which thread came first.
    let mut total = vec![0.0; width];
    vectorized(ColumnSums { x: &partial, sums: &mut total });
    total
}

struct ColumnSums<'a> {
    x: &'a [f32],
    sums: &'a mut [f32],
}

impl WithSimd for ColumnSums<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        for row in self.x.chunks_exact(self.sums.len()) {
            update_with::<S>(self.sums, row, |sum, x| sum + x);
        }
    }
}

/// Which entries of a matrix of scores are left out of the softmax.
#[derive(Debug, Clone, Copy)]
pub struct RowMask<'a> {
    /// Non-zero where left out; the rows of one item of the batch, or of every item.
    pub values: &'a [u8],
    /// Rows of queries, the same for each head.
    pub queries: usize,
    /// Heads that share the mask of an item.
    pub heads: usize,
}

impl RowMask<'_> {
    /// The mask of row `(item · heads + head) · queries + query`.
    fn row(&self, row: usize, width: usize) -> &[u8] {
        let (item, query) = (row / self.queries / self.heads, row % self.queries);
        let masks = self.values.len() / (self.queries * width);
        &self.values[(item % masks * self.queries + query) * width..][..width]
    }

    /// Multiplies the scores of a row by `scale`, and replaces those that are left out by `f32::MIN`.
    #[inline(always)]
    pub fn scale(&self, row: usize, scale: f32, scores: &mut [f32]) {
        let width = scores.len();
        for (score, masked) in scores.iter_mut().zip(self.row(row, width)) {
            *score = if *masked == 0 { *score * scale } else { f32::MIN };
        }
    }
}

/// Replaces each row of scores by the softmax of `scale · scores`; what the mask leaves out counts as `f32::MIN`.
pub fn softmax(width: usize, scale: f32, mask: Option<&RowMask<'_>>, scores: &mut [f32]) {
    let (n, rows) = (scores.len(), rows_per_task(width));
    for_each(scores.par_chunks_mut(rows * width), n, |task, scores| {
        vectorized(Softmax { width, scale, mask, first_row: task * rows, scores });
    });
}

/// Turns the gradient of the weights that [`softmax`] gave, in `grad`, into that of the scores, which is 0 for those
/// that the mask left out, even in a row where it left out all.
pub fn softmax_backward(width: usize, scale: f32, mask: Option<&RowMask<'_>>, weights: &[f32], grad: &mut [f32]) {
    let (n, rows) = (grad.len(), rows_per_task(width));
    for_each(grad.par_chunks_mut(rows * width), n, |task, grad| {
        let first_row = task * rows;
        let weights = &weights[first_row * width..][..grad.len()];
        vectorized(SoftmaxGradient { width, scale, mask, first_row, weights, grad });
    });
}

struct Softmax<'a> {
    width: usize,
    scale: f32,
    mask: Option<&'a RowMask<'a>>,
    first_row: usize,
    scores: &'a mut [f32],
}

impl WithSimd for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        for (i, row) in self.scores.chunks_exact_mut(self.width).enumerate() {
            let mask = self.mask.map(|mask| (mask, self.first_row + i));
            let factor = exponentials::<S>(row, self.scale, mask).splat::<S>();
            update(row, |e| e * factor);
        }
    }
}

/// Replaces the scores of a row by what the softmax of `scale · scores` divides by their sum, and returns one over that.
/// The scale is positive.
#[inline(always)]
pub fn exponentials<S: Simd>(scores: &mut [f32], scale: f32, mask: Option<(&RowMask<'_>, usize)>) -> f32 {
    // Without a mask the scale waits for the exponent.
    let scale = match mask {
        Some((mask, row)) => {
            mask.scale(row, scale, scores);
            1.0
        }
        None => scale,
    };
    let max = maximum::<S>(scores).splat::<S>();
    // Where the exponent is large its rounding counts, but the exponential is small.
    let scale = (scale * std::f32::consts::LOG2_E).splat::<S>();
    let (lanes, mut total) = (S::lanes32(), 0.0);
    // Loops and not a closure, which would be compiled without the instructions of `S`.
    for scores in scores.chunks_mut(RUN * lanes) {
        let mut sum = 0.0.splat::<S>();
        for scores in scores.chunks_mut(lanes) {
            let value = exp2_of_negative((load::<S>(scores) - max) * scale);
            store(value, scores);
            if scores.len() == lanes {
                sum += value;
            } else {
                total += scores.iter().map(|value| f64::from(*value)).sum::<f64>();
            }
        }
        total += f64::from(sum.reduce_add());
    }
    (1.0 / total) as f32
}

struct SoftmaxGradient<'a> {
    width: usize,
    scale: f32,
    mask: Option<&'a RowMask<'a>>,
    first_row: usize,
    weights: &'a [f32],
    grad: &'a mut [f32],
}

impl WithSimd for SoftmaxGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        let rows = self.grad.chunks_exact_mut(self.width).zip(self.weights.chunks_exact(self.width));
        for (i, (grad, weights)) in rows.enumerate() {
            let [mean, scale] =
                [sum_pairs::<S>(grad, weights, |g, w| g * w) as f32, self.scale].map(|value| value.splat::<S>());
            update_with(grad, weights, |g, w| (g - mean) * w * scale);
            if let Some(mask) = self.mask {
                for (grad, masked) in grad.iter_mut().zip(mask.row(self.first_row + i, self.width)) {
                    *grad = if *masked == 0 { *grad } else { 0.0 };
                }
            }
        }
    }
}
