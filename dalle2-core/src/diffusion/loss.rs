//! Loss terms of diffusion training.
//!
//! The simple loss is the mean squared error against [`PredictionType::target`], weighted by [`LossWeight`]. A learned
//! variance is trained with the variational bound beside it (improved DDPM, arXiv 2102.09672, section 3.1): the bound
//! sees the prediction detached, so it shapes the variance alone.

use burn::prelude::*;
use burn::tensor::DType;
use serde::{Deserialize, Serialize};

use super::{NoiseSchedule, PredictionType, coefficients};
use crate::ConfigError;

/// How the squared errors of different timesteps are weighted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossWeight {
    /// All the same.
    Uniform,
    /// As if the error of the clean data were weighted by min(SNR, γ) (arXiv 2303.09556, section 3.4).
    MinSnr {
        /// Cap on the signal-to-noise ratio, for example 5.
        gamma: f64,
    },
    /// The squared error of the noise divided by (k + SNR)^γ, which takes weight from the cleanest timesteps (Choi et al.
    /// 2022, P2 weighting, arXiv 2204.00227, equation 8).
    P2 {
        /// k, 1 in the paper.
        k: f64,
        /// γ, 0.5 or 1 in the paper; 0 weights the error of the noise evenly.
        gamma: f64,
    },
}

impl LossWeight {
    /// Weight of the squared error of each item, for a network with this prediction type.
    ///
    /// # Panics
    /// When a timestep leaves the schedule.
    pub fn weights(self, schedule: &NoiseSchedule, prediction: PredictionType, t: &[usize]) -> Vec<f32> {
        let weight = |t: &usize| {
            let snr = schedule.snr(*t);
            // The weight of the squared error of x_0, of which that of ε has 1/SNR and that of v 1/(SNR + 1).
            let x_start = match self {
                Self::Uniform => return 1.0,
                Self::MinSnr { gamma } => snr.min(gamma),
                Self::P2 { k, gamma } => snr / (k + snr).powf(gamma),
            };
            match prediction {
                PredictionType::XStart => x_start,
                PredictionType::Epsilon => x_start / snr,
                PredictionType::V => x_start / (snr + 1.0),
            }
        };
        t.iter().map(|t| weight(t) as f32).collect()
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// When γ or k is not finite, or not positive where it must be.
    pub fn validate(&self) -> Result<(), ConfigError> {
        match self {
            Self::MinSnr { gamma } if !(gamma.is_finite() && *gamma > 0.0) => {
                Err(ConfigError::new("loss_weight.gamma", gamma, "must be finite and above 0"))
            }
            Self::P2 { k, gamma } => {
                for (field, value, low) in
                    [("loss_weight.k", *k, f64::MIN_POSITIVE), ("loss_weight.gamma", *gamma, 0.0)]
                {
                    if !(value.is_finite() && value >= low) {
                        return Err(ConfigError::new(field, value, "must be finite; k above 0, gamma at least 0"));
                    }
                }
                Ok(())
            }
            Self::Uniform | Self::MinSnr { .. } => Ok(()),
        }
    }
}

/// Mean squared error of each item, in f32.
///
/// # Shapes
/// - output, target: `[B, …]`
/// - result: `[B]`
pub fn item_mse<const D: usize>(output: Tensor<D>, target: Tensor<D>) -> Tensor<1> {
    item_mean((output.cast(DType::F32) - target.cast(DType::F32)).powi_scalar(2))
}

/// Term of the variational bound at each item's timestep, in bits per component: the divergence between the posterior
/// q(x_{t−1} | x_t, x_0) and the network's step for t > 0, the likelihood of 8-bit data in [−1, 1] at t = 0.
///
/// `predicted` is the network's estimate of x_0; it is detached here, so that gradients reach `v` alone.
///
/// # Shapes
/// - x_start, x_t, predicted, v: `[B, …]`, with v in [−1, 1]
/// - t: B timesteps
/// - result: `[B]`
///
/// # Panics
/// When `t` has another length than the batch or leaves the schedule, or the schedule has a single timestep.
pub fn learned_range_vlb<const D: usize>(
    schedule: &NoiseSchedule,
    x_start: Tensor<D>,
    x_t: Tensor<D>,
    t: &[usize],
    predicted: Tensor<D>,
    v: Tensor<D>,
) -> Tensor<1> {
    let [x_start, x_t, predicted, v] = [x_start, x_t, predicted.detach(), v].map(|x| x.cast(DType::F32));
    let column = |value: fn(&NoiseSchedule, usize) -> f64| coefficients(t, &x_t, |t| value(schedule, t));
    let min_log = column(posterior_log_variance);
    let max_log = column(|schedule, t| schedule.betas()[t].ln());
    let log_variance = (v.clone() + 1.0) / 2.0 * max_log + (v.neg() + 1.0) / 2.0 * min_log.clone();

    let noise_part = x_t.clone() * column(|schedule, t| schedule.posterior(t).x_t);
    let data_factor = column(|schedule, t| schedule.posterior(t).x_start);
    let true_mean = x_start.clone() * data_factor.clone() + noise_part.clone();
    let mean = predicted * data_factor + noise_part;

    let divergence = item_mean(gaussian_kl(true_mean, min_log, mean.clone(), log_variance.clone()));
    let likelihood = item_mean(discretized_nll(x_start, mean, log_variance));
    let last = coefficients(t, &divergence, |t| if t == 0 { 1.0 } else { 0.0 });
    (divergence * (last.clone().neg() + 1.0) + likelihood * last) / std::f64::consts::LN_2
}

/// log β̃_t; β̃_0 is 0, so t = 0 takes the value of t = 1.
fn posterior_log_variance(schedule: &NoiseSchedule, t: usize) -> f64 {
    schedule.posterior(t.max(1)).variance.ln()
}

/// Divergence of N(mean_2, e^log_2) from N(mean_1, e^log_1), component by component, in nats.
fn gaussian_kl<const D: usize>(mean_1: Tensor<D>, log_1: Tensor<D>, mean_2: Tensor<D>, log_2: Tensor<D>) -> Tensor<D> {
    let ratio = (log_1.clone() - log_2.clone()).exp();
    let distance = (mean_1 - mean_2).powi_scalar(2) * log_2.clone().neg().exp();
    (log_2 - log_1 + ratio + distance - 1.0) * 0.5
}

/// Negative log-likelihood, in nats, of values on a grid of 255 steps over [−1, 1] under N(mean, e^log_variance) cut
/// into one bin per value; the outermost bins reach to infinity.
fn discretized_nll<const D: usize>(x: Tensor<D>, mean: Tensor<D>, log_variance: Tensor<D>) -> Tensor<D> {
    const HALF_BIN: f64 = 1.0 / 255.0;
    let centered = x.clone() - mean;
    let precision = (log_variance * -0.5).exp();
    let upper = normal_cdf((centered.clone() + HALF_BIN) * precision.clone());
    let lower = normal_cdf((centered - HALF_BIN) * precision);
    let inner = (upper.clone() - lower.clone()).clamp_min(1e-12).log();
    let darkest = upper.clamp_min(1e-12).log();
    let brightest = (lower.neg() + 1.0).clamp_min(1e-12).log();
    inner.mask_where(x.clone().lower_scalar(-0.999), darkest).mask_where(x.greater_scalar(0.999), brightest).neg()
}

fn normal_cdf<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    ((x / std::f64::consts::SQRT_2).erf() + 1.0) * 0.5
}

/// Mean over everything but the batch: `[B, …]` -> `[B]`.
fn item_mean<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    let batch = x.dims()[0];
    let count = x.dims().iter().product::<usize>() / batch;
    x.reshape([batch, count]).mean_dim(1).reshape([batch])
}

#[cfg(test)]
mod tests {
    use super::super::BetaSchedule;
    use super::*;

    fn schedule() -> NoiseSchedule {
        NoiseSchedule::new(BetaSchedule::Cosine, 1000).unwrap()
    }

    fn tensor(values: &[f32], device: &Device) -> Tensor<2> {
        Tensor::from_data(TensorData::new(values.to_vec(), [values.len(), 1]), device)
    }

    fn bits(x_start: f32, noise: f32, t: usize, eps: f32, v: f32) -> f64 {
        let (schedule, device) = (schedule(), Device::flex());
        let x_start = tensor(&[x_start], &device);
        let x_t = schedule.q_sample(x_start.clone(), &[t], tensor(&[noise], &device));
        let v = tensor(&[v], &device);
        let predicted = PredictionType::Epsilon.x_start(&schedule, tensor(&[eps], &device), x_t.clone(), &[t]);
        learned_range_vlb(&schedule, x_start, x_t, &[t], predicted, v).into_scalar::<f32>() as f64
    }

    #[test]
    fn a_perfect_step_costs_nothing() {
        // The right ε and v = −1 (the posterior's own variance).
        assert!(bits(0.3, 1.2, 500, 1.2, -1.0).abs() < 1e-5);
        assert!(bits(0.3, 1.2, 500, 1.2, 1.0) > 0.0);
    }

    #[test]
    fn the_divergence_has_the_closed_form() {
        let (t, error) = (500, 0.5);
        let schedule = schedule();
        let posterior = schedule.posterior(t);
        // An error in ε moves x_0 by −√(1−ᾱ)/√ᾱ times it, and the mean by the posterior's factor times that.
        let level = schedule.alphas_cumprod()[t];
        let shift = posterior.x_start * ((1.0 - level) / level).sqrt() * error;
        let ratio = posterior.variance / posterior.beta;
        let expected = 0.5 * (-ratio.ln() + ratio - 1.0 + shift * shift / posterior.beta) / std::f64::consts::LN_2;
        let found = bits(0.3, 1.2, t, 1.2 + error as f32, 1.0);
        assert!((found - expected).abs() < 1e-3 * expected, "{found} is not {expected}");
    }

    #[test]
    fn the_first_timestep_is_a_likelihood() {
        // At t = 0, with a perfect mean and σ² = β_0 (v = 1): −log2 of the mass of the central bin, σ = √β_0 = 0.0064,
        // half a bin = 0.0039 = 0.61 σ, so the mass is erf(0.61/√2).
        let sigma = schedule().betas()[0].sqrt();
        let z = 1.0 / 255.0 / sigma / std::f64::consts::SQRT_2;
        // erf by its power series, which converges quickly here.
        let mut term = z;
        let mut series = z;
        for k in 1..30 {
            term *= -z * z / k as f64;
            series += term / (2 * k + 1) as f64;
        }
        let expected = -(series * 2.0 / std::f64::consts::PI.sqrt()).log2();
        let found = bits(1.0 / 255.0, 0.7, 0, 0.7, 1.0);
        assert!((found - expected).abs() < 5e-3, "{found} is not {expected}");
        // The outermost bin reaches to infinity: half of the mass and the half bin.
        let outer = bits(1.0, 0.7, 0, 0.7, 1.0);
        assert!(outer < found && outer > 0.0, "{outer}");
    }

    #[test]
    fn items_keep_their_own_timestep() {
        let (schedule, device) = (schedule(), Device::flex());
        let (x, noise, eps, v) = ([0.1, -0.4], [0.8, -1.1], [0.6, -0.9], [0.2, -0.3]);
        let x_start = tensor(&x, &device);
        let t = [0, 700];
        let x_t = schedule.q_sample(x_start.clone(), &t, tensor(&noise, &device));
        let predicted = PredictionType::Epsilon.x_start(&schedule, tensor(&eps, &device), x_t.clone(), &t);
        let both = learned_range_vlb(&schedule, x_start, x_t, &t, predicted, tensor(&v, &device));
        let both = both.into_data().try_to_vec::<f32>().unwrap();
        for i in 0..2 {
            assert!((both[i] as f64 - bits(x[i], noise[i], t[i], eps[i], v[i])).abs() < 1e-4 * both[i].abs() as f64);
        }
    }

    #[test]
    fn gradients_reach_the_variance_alone() {
        let device = Device::flex().autodiff();
        let schedule = schedule();
        let x_start = tensor(&[0.1, -0.4], &device);
        let t = [0, 300];
        let x_t = schedule.q_sample(x_start.clone(), &t, tensor(&[0.8, -1.1], &device));
        let predicted = tensor(&[0.101, -0.5], &device).require_grad();
        let v = tensor(&[0.2, -0.3], &device).require_grad();
        let loss = learned_range_vlb(&schedule, x_start, x_t, &t, predicted.clone(), v.clone()).sum();
        let grads = loss.backward();
        assert!(predicted.grad(&grads).is_none());
        let gradient = v.grad(&grads).unwrap().into_data().try_to_vec::<f32>().unwrap();
        assert!(gradient.iter().all(|g| g.is_finite() && *g != 0.0), "{gradient:?}");
    }

    #[test]
    fn min_snr_weights_agree_between_prediction_types() {
        let schedule = schedule();
        let weight = LossWeight::MinSnr { gamma: 5.0 };
        for t in [10, 300, 800] {
            let snr = schedule.snr(t);
            let x = weight.weights(&schedule, PredictionType::XStart, &[t])[0] as f64;
            assert!((x - snr.min(5.0)).abs() < 1e-6 * x);
            // An error δ in x_0 is an error √SNR·δ in ε and √(SNR + 1)·δ in v.
            let eps = weight.weights(&schedule, PredictionType::Epsilon, &[t])[0] as f64;
            let v = weight.weights(&schedule, PredictionType::V, &[t])[0] as f64;
            assert!((eps * snr - x).abs() < 1e-5 * x && (v * (snr + 1.0) - x).abs() < 1e-5 * x);
        }
        assert_eq!(LossWeight::Uniform.weights(&schedule, PredictionType::V, &[3, 9]), [1.0, 1.0]);
        assert!(LossWeight::MinSnr { gamma: 0.0 }.validate().is_err());
    }

    #[test]
    fn p2_weights_have_the_closed_form() {
        let schedule = schedule();
        for t in [0, 200, 999] {
            let snr = schedule.snr(t);
            let weight =
                |gamma, prediction| LossWeight::P2 { k: 1.0, gamma }.weights(&schedule, prediction, &[t])[0] as f64;
            let eps = weight(0.5, PredictionType::Epsilon);
            assert!((eps - (1.0 + snr).powf(-0.5)).abs() < 1e-6 * eps);
            assert!((weight(0.5, PredictionType::XStart) - snr * eps).abs() < 1e-5 * snr * eps);
            assert!((weight(0.5, PredictionType::V) - snr / (snr + 1.0) * eps).abs() < 1e-5 * eps);
            assert!((weight(0.0, PredictionType::Epsilon) - 1.0).abs() < 1e-6);
        }
        for (k, gamma) in [(0.0, 1.0), (1.0, -0.1), (f64::NAN, 1.0), (1.0, f64::INFINITY)] {
            assert!(LossWeight::P2 { k, gamma }.validate().is_err());
        }
    }
}
