//! The posterior q(x_{t−1} | x_t, x_0) and the variances of the reverse process.
//!
//! DDPM (arXiv 2006.11239), equations 6 and 7; the learned range is improved DDPM (arXiv 2102.09672), equation 15.

use burn::prelude::*;
use serde::{Deserialize, Serialize};

/// Smallest variance whose logarithm is taken.
const MIN_VARIANCE: f64 = 1e-20;

/// Where the variance of a reverse step comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VarianceType {
    /// β̃_t, the variance of the posterior: right for data without spread.
    FixedSmall,
    /// β_t, right for data that is itself standard normal.
    FixedLarge,
    /// The network gives v in [−1, 1]: log σ² = f·log β_t + (1 − f)·log β̃_t with f = (v + 1)/2.
    LearnedRange,
    /// The best one for the data, β̃_t and the spread of x_0 around the network's estimate
    /// ([`AnalyticVariance`](super::AnalyticVariance)); the plan has it.
    Analytic,
}

/// Coefficients of q(x_p | x_t, x_0) for a timestep t and the timestep p before it, which need not be t − 1.
///
/// β is recomputed from the two levels, β = 1 − ᾱ_t/ᾱ_p, so the same formulas hold on a strided list of timesteps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PosteriorCoefficients {
    /// β = 1 − ᾱ_t/ᾱ_p.
    pub beta: f64,
    /// Factor of x_0 in the mean: √ᾱ_p · β / (1 − ᾱ_t).
    pub x_start: f64,
    /// Factor of x_t in the mean: √(1 − β) · (1 − ᾱ_p) / (1 − ᾱ_t).
    pub x_t: f64,
    /// β̃ = (1 − ᾱ_p) / (1 − ᾱ_t) · β; 0 at the last step, where ᾱ_p = 1.
    pub variance: f64,
}

impl PosteriorCoefficients {
    /// From ᾱ_t and ᾱ_p, where 0 < ᾱ_t < ᾱ_p ≤ 1.
    pub fn new(alpha_cumprod: f64, alpha_cumprod_prev: f64) -> Self {
        let beta = 1.0 - alpha_cumprod / alpha_cumprod_prev;
        let noise = 1.0 - alpha_cumprod;
        let noise_prev = 1.0 - alpha_cumprod_prev;
        Self {
            beta,
            x_start: alpha_cumprod_prev.sqrt() * beta / noise,
            x_t: (1.0 - beta).sqrt() * noise_prev / noise,
            variance: noise_prev / noise * beta,
        }
    }

    /// As [`Self::new`], rounding where arithmetic in `f32` rounds. `beta` is given where the schedule's own table has
    /// it, because the timesteps are neighbours.
    pub(super) fn rounded(alpha_cumprod: f64, alpha_cumprod_prev: f64, beta: Option<f64>) -> Self {
        let (level, previous) = (alpha_cumprod as f32, alpha_cumprod_prev as f32);
        let beta = beta.map_or(1.0 - level / previous, |beta| beta as f32);
        let (noise, noise_prev) = (1.0 - level, 1.0 - previous);
        Self {
            beta: beta.into(),
            x_start: (previous.sqrt() * beta / noise).into(),
            x_t: ((1.0 - beta).sqrt() * noise_prev / noise).into(),
            variance: (noise_prev / noise * beta).into(),
        }
    }

    /// Mean of the posterior.
    ///
    /// # Shapes
    /// - x_start, x_t and the output: `[B, …]`
    pub fn mean<const D: usize>(&self, x_start: Tensor<D>, x_t: Tensor<D>) -> Tensor<D> {
        x_start * self.x_start + x_t * self.x_t
    }

    /// Standard deviation that does not depend on the network.
    pub(super) fn fixed_sigma(&self, kind: FixedVariance) -> f64 {
        match kind {
            FixedVariance::Small => self.variance.max(MIN_VARIANCE).sqrt(),
            FixedVariance::Large => self.beta.sqrt(),
        }
    }

    /// Standard deviation `[B, …]` for the network's v `[B, …]` in [−1, 1].
    pub(super) fn learned_sigma<const D: usize>(&self, v: Tensor<D>) -> Tensor<D> {
        let (min_log, max_log) = (self.variance.max(MIN_VARIANCE).ln(), self.beta.ln());
        // log σ² = (v + 1)/2 · max + (1 − v)/2 · min
        let log_variance = v * ((max_log - min_log) / 2.0) + (max_log + min_log) / 2.0;
        (log_variance * 0.5).exp()
    }
}

/// The variances that are numbers of the schedule.
#[derive(Debug, Clone, Copy)]
pub(super) enum FixedVariance {
    Small,
    Large,
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Tolerance;

    #[test]
    fn posterior_equals_a_case_by_hand() {
        // ᾱ_p = 0.8, ᾱ_t = 0.4: β = 1/2, mean = √0.8·0.5/0.6·x_0 + √0.5·0.2/0.6·x_t, β̃ = 0.2/0.6·0.5 = 1/6.
        let posterior = PosteriorCoefficients::new(0.4, 0.8);
        for (found, expected) in [
            (posterior.beta, 0.5),
            (posterior.x_start, 0.745_355_992_499_93),
            (posterior.x_t, 0.235_702_260_395_515_8),
            (posterior.variance, 1.0 / 6.0),
        ] {
            assert!((found - expected).abs() < 1e-14, "{found} is not {expected}");
        }
        let device = Device::flex();
        let mean = posterior.mean(Tensor::<1>::from_floats([2.0], &device), Tensor::from_floats([-1.0], &device));
        let expected = TensorData::from([2.0 * 0.745_356f32 - 0.235_702_26]);
        mean.into_data().assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(1e-6, 1e-6));
    }

    #[test]
    fn posterior_agrees_with_bayes() {
        // q(x_p | x_t, x_0) ∝ q(x_t | x_p) · q(x_p | x_0): precisions add, means are weighted by them.
        let (level, previous) = (0.23, 0.61);
        let posterior = PosteriorCoefficients::new(level, previous);
        let alpha = level / previous;
        let likelihood = alpha / (1.0 - alpha);
        let prior = 1.0 / (1.0 - previous);
        let variance = 1.0 / (likelihood + prior);
        assert!((posterior.variance - variance).abs() < 1e-12);
        assert!((posterior.x_t - variance * likelihood / alpha.sqrt()).abs() < 1e-12);
        assert!((posterior.x_start - variance * prior * previous.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn last_step_returns_the_clean_data() {
        let posterior = PosteriorCoefficients::new(0.97, 1.0);
        assert!((posterior.x_start - 1.0).abs() < 1e-12);
        assert_eq!((posterior.x_t, posterior.variance), (0.0, 0.0));
    }

    #[test]
    fn learned_range_spans_both_fixed_variances() {
        let device = Device::flex();
        let posterior = PosteriorCoefficients::new(0.4, 0.8);
        let (small, large) = (posterior.fixed_sigma(FixedVariance::Small), posterior.fixed_sigma(FixedVariance::Large));
        let sigma = posterior.learned_sigma(Tensor::<1>::from_floats([-1.0, 0.0, 1.0], &device));
        let expected = TensorData::from([small as f32, (small * large).sqrt() as f32, large as f32]);
        sigma.into_data().assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(1e-5, 1e-6));
    }
}
