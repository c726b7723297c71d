//! DPM-Solver++ of second order (Lu et al. 2022, arXiv 2211.01095): 2M is algorithm 2, 2S algorithm 1.
//!
//! With λ = log(√ᾱ/√(1−ᾱ)) and h the growth of λ over a step, both solve x' = (σ'/σ)·x + √ᾱ'·(1 − e^{−h})·D, where D
//! is a second-order estimate of the clean data along the step. A step without a second estimate takes D = x_0, which
//! is DDIM with η = 0.

use burn::prelude::*;

use super::PlanStep;

/// Longest step of 2M in multiples of the one before that is extrapolated; longer ones are of first order. Evenly spaced
/// timesteps end with a step of several times the one before, so far beyond both estimates that their difference, and
/// with it their error, would be multiplied.
const LONGEST_STEP: f64 = 2.0;

/// One evaluation of the network.
#[derive(Debug, Clone)]
struct Evaluation<const D: usize> {
    alpha_cumprod: f64,
    x_t: Tensor<D>,
    x_start: Tensor<D>,
}

/// The evaluation before, which a second-order step needs beside the present one.
#[derive(Debug, Clone, Default)]
pub(super) struct History<const D: usize> {
    before: Option<Evaluation<D>>,
}

impl<const D: usize> History<D> {
    /// A step of 2M: D extrapolates the last two estimates of the clean data. The first step has one estimate; the
    /// last one leads to infinite λ, where D = x_0 is all there is.
    pub fn multistep(&mut self, step: &PlanStep, x_start: Tensor<D>, x_t: Tensor<D>) -> Tensor<D> {
        let now = Evaluation { alpha_cumprod: step.alpha_cumprod, x_t, x_start };
        let stretch = |before: &Evaluation<D>| {
            let h = log_snr(step.alpha_cumprod_prev) - log_snr(now.alpha_cumprod);
            h / (log_snr(now.alpha_cumprod) - log_snr(before.alpha_cumprod))
        };
        let before = self.before.as_ref().filter(|_| step.alpha_cumprod_prev < 1.0);
        let direction = match before.map(|before| (before, stretch(before))) {
            Some((before, stretch)) if stretch <= LONGEST_STEP => {
                let weight = 0.5 * stretch; // 1/(2r) with r = 1/stretch
                now.x_start.clone() * (1.0 + weight) - before.x_start.clone() * weight
            }
            _ => now.x_start.clone(),
        };
        let next = advance(now.alpha_cumprod, step.alpha_cumprod_prev, now.x_t.clone(), direction);
        self.before = Some(now);
        next
    }

    /// A step of 2S, which takes timesteps in pairs: the first of a pair is a step of first order to the second, where
    /// the network is asked again, and the pair's second estimate corrects the step from the pair's start to its end.
    /// A pair that ends at the clean data is two steps of first order.
    pub fn singlestep(&mut self, step: &PlanStep, x_start: Tensor<D>, x_t: Tensor<D>) -> Tensor<D> {
        let end = step.alpha_cumprod_prev;
        match self.before.take() {
            Some(start) if end < 1.0 => {
                let h = log_snr(end) - log_snr(start.alpha_cumprod);
                let ratio = (log_snr(step.alpha_cumprod) - log_snr(start.alpha_cumprod)) / h;
                let weight = 0.5 / ratio;
                let direction = start.x_start * (1.0 - weight) + x_start * weight;
                advance(start.alpha_cumprod, end, start.x_t, direction)
            }
            Some(_) => x_start,
            None => {
                let next = advance(step.alpha_cumprod, end, x_t.clone(), x_start.clone());
                self.before = Some(Evaluation { alpha_cumprod: step.alpha_cumprod, x_t, x_start });
                next
            }
        }
    }
}

/// λ = log(√ᾱ/√(1−ᾱ)), half the logarithm of the signal-to-noise ratio.
fn log_snr(alpha_cumprod: f64) -> f64 {
    0.5 * (alpha_cumprod / (1.0 - alpha_cumprod)).ln()
}

/// From level `from` to level `to` along an estimate of the clean data.
fn advance<const D: usize>(from: f64, to: f64, x_t: Tensor<D>, direction: Tensor<D>) -> Tensor<D> {
    // √ᾱ'·(1 − e^{−h}) = √ᾱ' − (σ'/σ)·√ᾱ
    let noise = ((1.0 - to) / (1.0 - from)).sqrt();
    x_t * noise + direction * (to.sqrt() - noise * from.sqrt())
}
