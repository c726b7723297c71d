//! Row-wise operations: layer normalisation and softmax.

use macerator::{Scalar, Simd, WithSimd};
use rayon::prelude::*;

use super::math::exp2_of_negative;
use super::norm::{self, Moments};
use super::parallel::{for_each, vectorized};
use super::raw::{
    RowMap, SUM_BLOCK, V, load, map_rows, map_rows_in_place, maximum, store, sum, sum_pairs, update, update_with,
};

/// Elements per task, tuned with `cargo bench -p dalle2-kernels --bench ops`.
const TASK_LEN: usize = 8 * 1024;

/// Number of rows of `width` elements in a task.
fn rows_per_task(width: usize) -> usize {
    (TASK_LEN / width).max(1)
}

/// Layer normalisation, `(x − μ) / √(σ² + ε) · γ + β` for each row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LayerNormRows<'a> {
    /// γ, as wide as a row.
    pub gamma: &'a [f32],
    /// β
    pub beta: &'a [f32],
    /// ε
    pub epsilon: f32,
}

impl LayerNormRows<'_> {
    /// Returns the normalised rows and their moments.
    pub(crate) fn normalized(&self, x: &[f32]) -> (Vec<f32>, Vec<Moments>) {
        map_rows(self, x, self.gamma.len())
    }

    /// [`Self::normalized`] in place.
    pub(crate) fn normalize(&self, x: &mut [f32]) -> Vec<Moments> {
        map_rows_in_place(self, x, self.gamma.len())
    }

    /// Replaces the output gradient in `grad` by the input gradient, and returns the gradients of γ and β.
    pub(crate) fn backward(&self, moments: &[Moments], x: &[f32], grad: &mut [f32]) -> (Vec<f32>, Vec<f32>) {
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
        // In the order of the rows, so that the sum does not depend on the scheduling.
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
                let (grad_gamma, grad_beta) = (&mut self.gamma[columns.clone()], &mut self.beta[columns.clone()]);
                store(value.mul_add(x_hat, load(grad_gamma)), grad_gamma);
                store(value + load(grad_beta), grad_beta);
                store(value * load(&self.norm.gamma[columns]), grad);
            }
            let mean_grad = sum::<S>(grad, |g| g) / width as f64;
            let mean_product = sum_pairs::<S>(grad, x, |g, x| g * (x - center)) / width as f64;
            // In f64: powers of rstd may underflow in f32.
            let constant = ((-mean_grad) as f32 * rstd).splat::<S>();
            let linear = ((-mean_product * f64::from(*rstd).powi(3)) as f32).splat::<S>();
            update_with::<S>(grad, x, |grad, x| grad.mul_add(scale, (x - center).mul_add(linear, constant)));
        }
    }
}

/// Sums each column of a matrix of `width` columns.
pub(crate) fn column_sums(x: &[f32], width: usize) -> Vec<f32> {
    let task = rows_per_task(width) * width;
    let mut partial = vec![0.0; x.len().div_ceil(task) * width];
    for_each(partial.par_chunks_mut(width).zip(x.par_chunks(task)), x.len(), |_, (sums, x)| {
        vectorized(ColumnSums { x, sums });
    });
    // In the order of the rows, so that the sum does not depend on the scheduling.
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

/// The mask of attention scores.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowMask<'a> {
    /// Non-zero where masked out; for one item of the batch or for every item.
    pub data: &'a [u8],
    /// Number of queries, the same for each head.
    pub queries: usize,
    /// Heads that share the mask of an item.
    pub heads: usize,
}

impl RowMask<'_> {
    /// Returns the mask of row `(item · heads + head) · queries + query`.
    fn row(&self, row: usize, width: usize) -> &[u8] {
        let (item, query) = (row / self.queries / self.heads, row % self.queries);
        let masks = self.data.len() / (self.queries * width);
        &self.data[(item % masks * self.queries + query) * width..][..width]
    }

    /// Multiplies the scores of a row by `scale` and sets masked scores to `f32::MIN`.
    #[inline(always)]
    pub(crate) fn scale(&self, row: usize, scale: f32, scores: &mut [f32]) {
        let width = scores.len();
        for (score, masked) in scores.iter_mut().zip(self.row(row, width)) {
            *score = if *masked == 0 { *score * scale } else { f32::MIN };
        }
    }
}

/// Replaces each row of scores by the softmax of `scale · scores`; masked scores count as `f32::MIN`.
pub(crate) fn softmax(width: usize, scale: f32, mask: Option<&RowMask<'_>>, scores: &mut [f32]) {
    let (n, rows) = (scores.len(), rows_per_task(width));
    for_each(scores.par_chunks_mut(rows * width), n, |task, scores| {
        vectorized(Softmax { width, scale, mask, first_row: task * rows, scores });
    });
}

/// Replaces the gradient of the weights of [`softmax`] in `grad` by the gradient of the scores. Masked scores have a
/// gradient of 0, even in a fully masked row.
pub(crate) fn softmax_backward(
    width: usize,
    scale: f32,
    mask: Option<&RowMask<'_>>,
    weights: &[f32],
    grad: &mut [f32],
) {
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

/// Replaces the scores of a row by the unnormalised softmax of `scale · scores`, and returns the reciprocal of its sum.
/// The scale is positive.
#[inline(always)]
pub(crate) fn exponentials<S: Simd>(scores: &mut [f32], scale: f32, mask: Option<(&RowMask<'_>, usize)>) -> f32 {
    // Without a mask the scale is folded into the exponent.
    let scale = match mask {
        Some((mask, row)) => {
            mask.scale(row, scale, scores);
            1.0
        }
        None => scale,
    };
    let max = maximum::<S>(scores).splat::<S>();
    // Rounding errors grow with the magnitude of the exponent, where the exponential is small.
    let scale = (scale * std::f32::consts::LOG2_E).splat::<S>();
    let (lanes, mut total) = (S::lanes32(), 0.0);
    // Loops and not a closure, which would be compiled without the instructions of `S`.
    for scores in scores.chunks_mut(SUM_BLOCK * lanes) {
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
