//! The variance of ancestral steps that is best for the data (Bao et al. 2022, Analytic-DPM, arXiv 2201.06503).
//!
//! Given x_t, the clean data still vary around the network's estimate. Theorem 1 adds that spread to the posterior's
//! variance: σ² = β̃ + c²·V_t, where c is the factor of x_0 in the posterior's mean and V_t = E‖x_0 − E[x_0|x_t]‖²/D.
//! The paper writes V_t as (1−ᾱ_t)/ᾱ_t · (1 − E‖ε̂‖²/D) with the predicted noise ε̂; for a perfect network both are the
//! same number. Here V_t itself is kept: it is a mean squared error, well conditioned at every timestep, where 1 −
//! E‖ε̂‖²/D at the noisiest ones is the difference of two numbers that agree in eight digits.

use std::collections::BTreeMap;

use burn::prelude::*;
use burn::tensor::DType;
use serde::{Deserialize, Serialize};

use super::NoiseSchedule;
use crate::{ConfigError, Error, Result};

/// V_t, the spread of the clean data around the network's estimate, at some timesteps; stored with the model it was
/// measured for.
///
/// [`SamplingPlan::with_analytic_variance`](super::SamplingPlan::with_analytic_variance) makes it part of a plan, and
/// [`VarianceType::Analytic`](super::VarianceType::Analytic) samples with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnalyticVariance {
    timesteps: Vec<usize>,
    x_start_variance: Vec<f64>,
}

impl AnalyticVariance {
    /// From V_t at strictly increasing timesteps.
    ///
    /// # Errors
    /// When the lists are empty or differ in length, timesteps do not increase, or a value is negative or not finite.
    pub fn new(timesteps: Vec<usize>, x_start_variance: Vec<f64>) -> Result<Self, ConfigError> {
        let variance = Self { timesteps, x_start_variance };
        variance.check()?;
        Ok(variance)
    }

    /// From the paper's statistic: pairs of a timestep and E‖ε̂‖²/D, the mean square of a component of the predicted
    /// noise. The result is cut off at 0 and at `data_variance`, the variance of a component of the clean data, which
    /// no estimate's error exceeds (theorem 2 there).
    ///
    /// # Errors
    /// As [`Self::new`], and when a timestep leaves the schedule or `data_variance` is not positive and finite.
    pub fn from_eps_power(
        schedule: &NoiseSchedule,
        eps_power: &[(usize, f64)],
        data_variance: f64,
    ) -> Result<Self, ConfigError> {
        if !(data_variance.is_finite() && data_variance > 0.0) {
            return Err(ConfigError::new("data_variance", data_variance, "must be finite and above 0"));
        }
        let mut values = Vec::with_capacity(eps_power.len());
        for (t, power) in eps_power {
            let Some(level) = schedule.alphas_cumprod().get(*t) else {
                let expected = format!("must be below {}", schedule.num_steps());
                return Err(ConfigError::new("analytic_variance.timesteps", t, expected));
            };
            if !power.is_finite() {
                return Err(ConfigError::new("eps_power", power, "must be finite"));
            }
            values.push(((1.0 - level) / level * (1.0 - power)).clamp(0.0, data_variance));
        }
        Self::new(eps_power.iter().map(|(t, _)| *t).collect(), values)
    }

    /// V_t: between measured timesteps by linear interpolation, beyond them the nearest one's.
    pub fn at(&self, t: usize) -> f64 {
        let after = self.timesteps.partition_point(|known| *known < t);
        if after == self.timesteps.len() {
            return self.x_start_variance[after - 1];
        }
        let (t_after, v_after) = (self.timesteps[after], self.x_start_variance[after]);
        if after == 0 || t_after == t {
            return v_after;
        }
        let (t_before, v_before) = (self.timesteps[after - 1], self.x_start_variance[after - 1]);
        let share = (t - t_before) as f64 / (t_after - t_before) as f64;
        v_before + (v_after - v_before) * share
    }

    /// Checks the table against a schedule of `train_steps` timesteps; a table that was read from a file needs it.
    ///
    /// # Errors
    /// As [`Self::new`], and when a timestep is not below `train_steps`.
    pub fn validate(&self, train_steps: usize) -> Result<(), ConfigError> {
        self.check()?;
        match self.timesteps.iter().find(|t| **t >= train_steps) {
            Some(t) => Err(ConfigError::new("analytic_variance.timesteps", t, format!("must be below {train_steps}"))),
            None => Ok(()),
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        let (timesteps, values) = (&self.timesteps, &self.x_start_variance);
        if timesteps.is_empty() || timesteps.len() != values.len() {
            let found = format!("{} and {} values", timesteps.len(), values.len());
            let expected = "needs as many timesteps as variances, at least one";
            return Err(ConfigError::new("analytic_variance", found, expected));
        }
        if let Some(pair) = timesteps.windows(2).find(|pair| pair[1] <= pair[0]) {
            let expected = "must increase strictly";
            return Err(ConfigError::new("analytic_variance.timesteps", format!("{pair:?}"), expected));
        }
        match values.iter().find(|value| !(value.is_finite() && **value >= 0.0)) {
            Some(value) => {
                let expected = "must be finite and at least 0";
                Err(ConfigError::new("analytic_variance.x_start_variance", value, expected))
            }
            None => Ok(()),
        }
    }
}

/// Measures [`AnalyticVariance`] from data and a network's estimates of them.
#[derive(Debug, Clone, Default)]
pub struct AnalyticEstimator {
    /// Sum of squared errors and number of components, by timestep.
    sums: BTreeMap<usize, (f64, f64)>,
}

impl AnalyticEstimator {
    /// An estimator that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds clean data and the network's estimate of them from x_t at timestep t.
    ///
    /// # Shapes
    /// - x_start, predicted: `[B, …]`
    ///
    /// # Errors
    /// When the shapes differ, a value is not finite, or the tensors cannot be read back.
    pub fn add<const D: usize>(&mut self, t: usize, x_start: Tensor<D>, predicted: Tensor<D>) -> Result<()> {
        let (shape, found) = (x_start.dims(), predicted.dims());
        if shape != found {
            return Err(Error::Mismatch(format!("estimates of shape {found:?} for data of shape {shape:?}")));
        }
        let error = (x_start.cast(DType::F32) - predicted.cast(DType::F32)).powi_scalar(2).sum();
        let error = f64::from(error.into_scalar::<f32>());
        if !error.is_finite() {
            return Err(Error::Input(format!("the network's estimate at timestep {t} is not finite")));
        }
        let sum = self.sums.entry(t).or_default();
        *sum = (sum.0 + error, sum.1 + shape.iter().product::<usize>() as f64);
        Ok(())
    }

    /// The table of the timesteps that were added.
    ///
    /// # Errors
    /// When nothing was added.
    pub fn finish(self) -> Result<AnalyticVariance, ConfigError> {
        let (timesteps, values) = self.sums.into_iter().map(|(t, (error, count))| (t, error / count)).unzip();
        AnalyticVariance::new(timesteps, values)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BetaSchedule, SamplingPlan, SeededNoise, draw};
    use super::*;

    fn schedule() -> NoiseSchedule {
        NoiseSchedule::new(BetaSchedule::Cosine, 1000).unwrap()
    }

    /// E[x_0|x_t] of N(0, s²) is gain·x_t, and its error s²·(1−ᾱ)/(s²·ᾱ + 1−ᾱ).
    fn gain_and_spread(level: f64, std: f64) -> (f64, f64) {
        let total = std * std * level + 1.0 - level;
        (std * std * level.sqrt() / total, std * std * (1.0 - level) / total)
    }

    #[test]
    fn the_estimator_finds_the_spread_of_a_gaussian() {
        let (schedule, device) = (schedule(), Device::flex());
        let mut noise = SeededNoise::new(&[5], 0);
        let mut estimator = AnalyticEstimator::new();
        let timesteps = [20, 400, 900];
        for t in timesteps {
            for _ in 0..2 {
                let x = draw::<2>(&mut noise, [1, 20_000], &device).unwrap() * 0.4;
                let x_t = schedule.q_sample(x.clone(), &[t], draw(&mut noise, [1, 20_000], &device).unwrap());
                let (gain, _) = gain_and_spread(schedule.alphas_cumprod()[t], 0.4);
                estimator.add(t, x, x_t * gain).unwrap();
            }
        }
        let table = estimator.finish().unwrap();
        for t in timesteps {
            let (_, expected) = gain_and_spread(schedule.alphas_cumprod()[t], 0.4);
            // Five standard errors of the variance of 40,000 normal values.
            assert!((table.at(t) - expected).abs() < 5.0 * (2.0f64 / 40_000.0).sqrt() * expected, "{t}");
        }
    }

    #[test]
    fn both_statistics_give_the_same_variance() {
        let schedule = schedule();
        for t in [5, 300, 800] {
            let level = schedule.alphas_cumprod()[t];
            let (_, spread) = gain_and_spread(level, 0.7);
            let eps_power = (1.0 - level) / (0.49 * level + 1.0 - level);
            let table = AnalyticVariance::from_eps_power(&schedule, &[(t, eps_power)], 0.49).unwrap();
            assert!((table.at(t) - spread).abs() < 1e-9, "{t}");
            // Theorem 1 as the paper states it, with λ² = β̃.
            let plan = SamplingPlan::from_timesteps(&schedule, &[t, t / 2]).unwrap().with_analytic_variance(&table);
            let step = plan.steps()[0];
            let alpha = level / step.alpha_cumprod_prev;
            let root =
                ((1.0 - level) / alpha).sqrt() - (1.0 - step.alpha_cumprod_prev - step.posterior.variance).sqrt();
            let expected = step.posterior.variance + root * root * (1.0 - eps_power);
            assert!((step.analytic_variance.unwrap() - expected).abs() < 1e-9, "{t}");
        }
    }

    #[test]
    fn noisy_statistics_are_cut_off() {
        let table = AnalyticVariance::from_eps_power(&schedule(), &[(3, 1.2), (999, 0.9)], 0.8).unwrap();
        assert_eq!((table.at(3), table.at(999)), (0.0, 0.8));
    }

    #[test]
    fn between_measured_timesteps_the_table_is_linear() {
        let table = AnalyticVariance::new(vec![10, 20, 40], vec![0.1, 0.2, 0.6]).unwrap();
        for (t, expected) in [(0, 0.1), (10, 0.1), (15, 0.15), (20, 0.2), (35, 0.5), (40, 0.6), (999, 0.6)] {
            assert!((table.at(t) - expected).abs() < 1e-12, "{t}");
        }
    }

    #[test]
    fn unusable_tables_are_refused() {
        assert!(AnalyticEstimator::new().finish().is_err());
        let field = |timesteps, values| AnalyticVariance::new(timesteps, values).unwrap_err().field;
        assert_eq!(field(vec![1, 2], vec![0.1]), "analytic_variance");
        assert_eq!(field(vec![2, 2], vec![0.1, 0.1]), "analytic_variance.timesteps");
        assert_eq!(field(vec![2], vec![-0.1]), "analytic_variance.x_start_variance");
        let table = AnalyticVariance::new(vec![2, 50], vec![0.1, 0.2]).unwrap();
        assert!(table.validate(51).is_ok() && table.validate(50).is_err());
        let device = Device::flex();
        let (a, b) = (Tensor::<2>::zeros([1, 2], &device), Tensor::<2>::zeros([1, 3], &device));
        assert!(matches!(AnalyticEstimator::new().add(0, a.clone(), b), Err(Error::Mismatch(_))));
        assert!(matches!(AnalyticEstimator::new().add(0, a.clone(), a / 0.0), Err(Error::Input(_))));
    }

    #[test]
    fn a_table_reads_back_what_it_wrote() {
        let table = AnalyticVariance::new(vec![0, 500, 999], vec![0.0, 0.25, 1.0]).unwrap();
        let text = serde_json::to_string(&table).unwrap();
        assert_eq!(serde_json::from_str::<AnalyticVariance>(&text).unwrap(), table);
    }
}
