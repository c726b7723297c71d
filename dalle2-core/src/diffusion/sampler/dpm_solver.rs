//! DPM-Solver++ of second order (Lu et al. 2022, arXiv 2211.01095): 2M is algorithm 2, 2S algorithm 1.
//!
//! With λ = log(√ᾱ/√(1−ᾱ)) and h the growth of λ over a step, both solve x' = (σ'/σ)·x + √ᾱ'·(1 − e^{−h})·D, where D
//! is a second-order estimate of the clean data along the step. A step without a second estimate takes D = x_0, which
//! is DDIM with η = 0.

use burn::prelude::*;

use super::PlanStep;

/// Maximum length in λ of a second-order step, in multiples of the distance between its two estimates; longer steps are
/// of first order. Evenly spaced timesteps end with a step of several times the one before, where an extrapolation would
/// multiply the difference of the estimates and with it their error.
const MAX_EXTRAPOLATION: f64 = 2.0;

/// Maximum length in λ of a pair of 2S that is of second order. Its midpoint rule assumes an estimate that is linear in
/// λ, and the first pair of a few evenly spaced timesteps spans most of the schedule.
const MAX_PAIR: f64 = 3.0;

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
            Some((before, stretch)) if stretch <= MAX_EXTRAPOLATION => {
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
    /// the network is evaluated again, and the pair's second estimate corrects the step from the pair's start to its
    /// end. A pair that is too long for this, or ends at the clean data, is two steps of first order.
    pub fn singlestep(&mut self, step: &PlanStep, x_start: Tensor<D>, x_t: Tensor<D>) -> Tensor<D> {
        let end = step.alpha_cumprod_prev;
        match self.before.take() {
            Some(start) if is_second_order(&start, step) => {
                let h = log_snr(end) - log_snr(start.alpha_cumprod);
                let ratio = (log_snr(step.alpha_cumprod) - log_snr(start.alpha_cumprod)) / h;
                let weight = 0.5 / ratio;
                let direction = start.x_start * (1.0 - weight) + x_start * weight;
                advance(start.alpha_cumprod, end, start.x_t, direction)
            }
            Some(_) if end < 1.0 => advance(step.alpha_cumprod, end, x_t, x_start),
            Some(_) => x_start,
            None => {
                let next = advance(step.alpha_cumprod, end, x_t.clone(), x_start.clone());
                self.before = Some(Evaluation { alpha_cumprod: step.alpha_cumprod, x_t, x_start });
                next
            }
        }
    }
}

/// Whether the pair of 2S that `step` ends is short enough, and ends before the clean data.
fn is_second_order<const D: usize>(start: &Evaluation<D>, step: &PlanStep) -> bool {
    let [from, middle, to] = [start.alpha_cumprod, step.alpha_cumprod, step.alpha_cumprod_prev].map(log_snr);
    to - middle <= MAX_EXTRAPOLATION * (middle - from) && to - from <= MAX_PAIR
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
