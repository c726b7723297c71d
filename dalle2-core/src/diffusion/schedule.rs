//! Noise schedules: how much of the data is left after each timestep.
//!
//! Tables are computed once in `f64`. The cosine schedule is improved DDPM (arXiv 2102.09672), section 3.2; the
//! linear one is DDPM (arXiv 2006.11239), section 4, stretched to any number of timesteps.

use std::fmt;

use burn::prelude::*;
use serde::{Deserialize, Serialize};

use super::{PosteriorCoefficients, coefficients};
use crate::ConfigError;

/// Largest β of the cosine schedule, which would reach 1 at the last timestep.
const MAX_BETA: f64 = 0.999;

/// Shape of a noise schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// ᾱ follows a squared cosine (unCLIP's priors, decoder and first upsampler).
    Cosine,
    /// β grows linearly, from 1e-4 to 2e-2 at T = 1000 (unCLIP's last upsampler).
    Linear,
}

impl BetaSchedule {
    fn betas(self, steps: usize) -> Vec<f64> {
        let total = steps as f64;
        match self {
            Self::Cosine => {
                let level = |i: usize| ((i as f64 / total + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
                (0..steps).map(|i| (1.0 - level(i + 1) / level(i)).min(MAX_BETA)).collect()
            }
            Self::Linear => {
                let (first, last) = (1e-4 * 1000.0 / total, 2e-2 * 1000.0 / total);
                (0..steps).map(|i| first + (last - first) * i as f64 / (total - 1.0).max(1.0)).collect()
            }
        }
    }
}

/// How the numbers of a schedule, and the coefficients of plans along it, are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rounding {
    /// To f64.
    #[default]
    Double,
    /// To f32, where the reference implementation rounds: for its checkpoints, whose results then agree with it to the
    /// last digits. ᾱ is the product, in f64, of the rounded 1 − β.
    Single,
}

/// The forward process q(x_t | x_0): its tables over the timesteps `0..T`.
#[derive(Clone, PartialEq)]
pub struct NoiseSchedule {
    kind: BetaSchedule,
    rounding: Rounding,
    betas: Vec<f64>,
    alphas_cumprod: Vec<f64>,
}

impl fmt::Debug for NoiseSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NoiseSchedule({:?}, {} steps, {:?})", self.kind, self.num_steps(), self.rounding)
    }
}

impl NoiseSchedule {
    /// The schedule of this shape over `steps` timesteps.
    ///
    /// # Errors
    /// When `steps` is 0, or so small that a β of the linear schedule reaches 1 (fewer than 21 timesteps).
    pub fn new(kind: BetaSchedule, steps: usize) -> Result<Self, ConfigError> {
        if steps == 0 {
            return Err(ConfigError::new("train_steps", steps, "a noise schedule needs at least 1 timestep"));
        }
        let betas = kind.betas(steps);
        if betas.iter().any(|beta| *beta >= 1.0) {
            return Err(ConfigError::new("train_steps", steps, "the linear schedule needs at least 21 timesteps"));
        }
        let alphas_cumprod = betas
            .iter()
            .scan(1.0, |product, beta| {
                *product *= 1.0 - beta;
                Some(*product)
            })
            .collect();
        Ok(Self { kind, rounding: Rounding::Double, betas, alphas_cumprod })
    }

    /// The same schedule with rounded tables.
    pub fn rounded(self, rounding: Rounding) -> Self {
        if rounding == Rounding::Double || self.rounding == rounding {
            return self;
        }
        let betas: Vec<f32> = self.betas.iter().map(|beta| *beta as f32).collect();
        let mut product = 1.0;
        let alphas_cumprod = betas.iter().map(|beta| {
            product *= f64::from(1.0 - beta);
            f64::from(product as f32)
        });
        Self {
            kind: self.kind,
            rounding,
            alphas_cumprod: alphas_cumprod.collect(),
            betas: betas.into_iter().map(f64::from).collect(),
        }
    }

    /// How the tables are rounded.
    pub fn rounding(&self) -> Rounding {
        self.rounding
    }

    /// Shape of the schedule.
    pub fn kind(&self) -> BetaSchedule {
        self.kind
    }

    /// Number T of timesteps.
    pub fn num_steps(&self) -> usize {
        self.betas.len()
    }

    /// β_t for every timestep.
    pub fn betas(&self) -> &[f64] {
        &self.betas
    }

    /// ᾱ_t = Π (1 − β) up to and including t.
    pub fn alphas_cumprod(&self) -> &[f64] {
        &self.alphas_cumprod
    }

    /// Signal-to-noise ratio ᾱ_t / (1 − ᾱ_t).
    ///
    /// # Panics
    /// When `t` is not below [`Self::num_steps`].
    pub fn snr(&self, t: usize) -> f64 {
        self.alphas_cumprod[t] / (1.0 - self.alphas_cumprod[t])
    }

    /// Coefficients of q(x_{t−1} | x_t, x_0).
    ///
    /// # Panics
    /// When `t` is not below [`Self::num_steps`].
    pub fn posterior(&self, t: usize) -> PosteriorCoefficients {
        let previous = if t == 0 { 1.0 } else { self.alphas_cumprod[t - 1] };
        PosteriorCoefficients::new(self.alphas_cumprod[t], previous)
    }

    /// Draws from q(x_t | x_0): √ᾱ_t · x_0 + √(1 − ᾱ_t) · noise, with one timestep per batch item.
    ///
    /// # Shapes
    /// - x_start, noise: `[B, …]`
    /// - t: B timesteps
    /// - output: `[B, …]`
    ///
    /// # Panics
    /// When `t` has another length than the batch, or a timestep is not below [`Self::num_steps`].
    pub fn q_sample<const D: usize>(&self, x_start: Tensor<D>, t: &[usize], noise: Tensor<D>) -> Tensor<D> {
        let (signal, sigma) = self.signal_and_sigma(t, &x_start);
        x_start * signal + noise * sigma
    }

    /// √ᾱ_t and √(1 − ᾱ_t) of each batch item, shaped `[B, 1, …]` to broadcast against `like`.
    pub(super) fn signal_and_sigma<const D: usize>(&self, t: &[usize], like: &Tensor<D>) -> (Tensor<D>, Tensor<D>) {
        let signal = coefficients(t, like, |t| self.alphas_cumprod[t].sqrt());
        let sigma = coefficients(t, like, |t| (1.0 - self.alphas_cumprod[t]).sqrt());
        (signal, sigma)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Tolerance;

    fn close(a: f64, b: f64, relative: f64) {
        assert!((a - b).abs() <= relative * b.abs(), "{a} is not {b}");
    }

    #[test]
    fn cosine_levels_have_the_closed_form() {
        let schedule = NoiseSchedule::new(BetaSchedule::Cosine, 1000).unwrap();
        let level = |u: f64| ((u + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
        // Below the cap on β the product telescopes to level(t + 1) / level(0).
        for t in [0, 1, 10, 499, 900, 998] {
            close(schedule.alphas_cumprod()[t], level((t + 1) as f64 / 1000.0) / level(0.0), 1e-9);
        }
        assert_eq!(schedule.betas()[999], 0.999);
        close(schedule.alphas_cumprod()[999], schedule.alphas_cumprod()[998] * 1e-3, 1e-9);
    }

    #[test]
    fn linear_betas_have_the_closed_form() {
        let schedule = NoiseSchedule::new(BetaSchedule::Linear, 1000).unwrap();
        close(schedule.betas()[0], 1e-4, 1e-12);
        close(schedule.betas()[999], 2e-2, 1e-12);
        close(schedule.betas()[500], 1e-4 + 500.0 * (2e-2 - 1e-4) / 999.0, 1e-12);
        // Stretched to 100 timesteps, the same amount of noise is added in a tenth of the steps.
        let short = NoiseSchedule::new(BetaSchedule::Linear, 100).unwrap();
        close(short.betas()[0], 1e-3, 1e-12);
        close(short.betas().iter().sum(), schedule.betas().iter().sum(), 1e-12);
    }

    #[test]
    fn signal_decreases_strictly() {
        for kind in [BetaSchedule::Cosine, BetaSchedule::Linear] {
            let schedule = NoiseSchedule::new(kind, 64).unwrap();
            assert!(schedule.alphas_cumprod().windows(2).all(|pair| pair[1] < pair[0] && pair[1] > 0.0));
            assert!((1..64).all(|t| schedule.snr(t) < schedule.snr(t - 1)));
        }
    }

    #[test]
    fn unusable_lengths_are_refused() {
        assert_eq!(NoiseSchedule::new(BetaSchedule::Cosine, 0).unwrap_err().field, "train_steps");
        assert!(NoiseSchedule::new(BetaSchedule::Linear, 20).is_err());
        assert!(NoiseSchedule::new(BetaSchedule::Linear, 21).is_ok());
        assert_eq!(NoiseSchedule::new(BetaSchedule::Cosine, 1).unwrap().betas(), [0.999]);
    }

    #[test]
    fn q_sample_uses_the_timestep_of_each_item() {
        let device = Device::flex();
        let schedule = NoiseSchedule::new(BetaSchedule::Cosine, 10).unwrap();
        let x = Tensor::<3>::from_floats([[[1.0, -2.0]], [[3.0, 0.5]]], &device);
        let noise = Tensor::<3>::from_floats([[[0.5, 1.0]], [[-1.0, 2.0]]], &device);
        let expected: Vec<f32> = [(1.0, 0.5, 2), (-2.0, 1.0, 2), (3.0, -1.0, 7), (0.5, 2.0, 7)]
            .map(|(x, n, t): (f64, f64, usize)| {
                let level = schedule.alphas_cumprod()[t];
                (level.sqrt() * x + (1.0 - level).sqrt() * n) as f32
            })
            .to_vec();
        let found = schedule.q_sample(x, &[2, 7], noise);
        found
            .into_data()
            .assert_approx_eq::<f32>(&TensorData::new(expected, [2, 1, 2]), Tolerance::rel_abs(1e-6, 1e-6));
    }
}
