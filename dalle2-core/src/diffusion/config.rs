//! The configuration of a diffusion process: what a network was trained for, and the defaults of sampling.

use burn::prelude::*;
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use super::{
    BetaSchedule, Clip, GuidanceInterval, LossWeight, NoiseSchedule, PredictionType, Rounding, Sampler, SamplerOptions,
    Spacing, VarianceType,
};
use crate::{ConfigError, DiffusionOptions};

/// Weight λ of the variational bound in improved DDPM (arXiv 2102.09672, section 3.1).
const VLB_WEIGHT: f64 = 1e-3;

/// A diffusion process of a prior, a decoder or an upsampler.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiffusionConfig {
    /// Timesteps T in training.
    pub train_steps: usize,
    /// Noise schedule.
    pub schedule: BetaSchedule,
    /// The quantity that the network predicts.
    pub prediction: PredictionType,
    /// Variance of the reverse process; [`VarianceType::LearnedRange`] doubles the output channels.
    pub variance: VarianceType,
    /// Weight of the variational bound beside the mean squared error, for a learned variance.
    pub vlb_weight: f64,
    /// Weights of the squared errors of different timesteps in training; `None` is [`LossWeight::Uniform`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_weight: Option<LossWeight>,
    /// Default number of sampling steps.
    pub sampling_steps: usize,
    /// Default sampler.
    pub sampler: Sampler,
    /// Default guidance scale; 1 disables guidance.
    pub guidance: f64,
    /// Rounding of the schedule; `None` is [`Rounding::Double`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounding: Option<Rounding>,
    /// Default timesteps at which guidance is active; `None` is all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance_interval: Option<GuidanceInterval>,
    /// Default spacing of the timesteps; `None` is [`Spacing::Even`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spacing: Option<Spacing>,
    /// Default clipping of the estimates of the clean data; `None` clamps to [−1, 1].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<Clip>,
}

impl DiffusionConfig {
    /// Cosine schedule of 1,000 steps, prediction of v, DDIM.
    pub fn cosine(variance: VarianceType, sampling_steps: usize, guidance: f64) -> Self {
        Self {
            train_steps: 1000,
            schedule: BetaSchedule::Cosine,
            prediction: PredictionType::V,
            variance,
            vlb_weight: VLB_WEIGHT,
            loss_weight: None,
            sampling_steps,
            sampler: Sampler::Ddim { eta: 0.0 },
            guidance,
            rounding: None,
            guidance_interval: None,
            spacing: None,
            clip: None,
        }
    }

    /// A process that diffusers' `UnCLIPScheduler` supports: prediction of ε on the cosine schedule, DDPM.
    pub fn portable(variance: VarianceType, sampling_steps: usize, guidance: f64) -> Self {
        Self {
            prediction: PredictionType::Epsilon,
            sampler: Sampler::Ddpm,
            rounding: Some(Rounding::Single),
            ..Self::cosine(variance, sampling_steps, guidance)
        }
    }

    /// Returns the tables of the schedule.
    ///
    /// # Errors
    /// If `train_steps` is out of range.
    pub fn noise_schedule(&self) -> Result<NoiseSchedule, ConfigError> {
        Ok(NoiseSchedule::new(self.schedule, self.train_steps)?.rounded(self.rounding.unwrap_or_default()))
    }

    /// Returns the default clipping of the estimates of the clean data.
    pub fn clip(&self) -> Clip {
        self.clip.unwrap_or(Clip::Range(1.0))
    }

    /// Returns the number of output channels for data of `channels` channels.
    pub fn out_channels(&self, channels: usize) -> usize {
        match self.variance {
            VarianceType::LearnedRange => 2 * channels,
            _ => channels,
        }
    }

    /// Returns the sampling defaults.
    pub fn defaults(&self) -> DiffusionOptions {
        DiffusionOptions {
            steps: Some(self.sampling_steps),
            guidance: Some(self.guidance),
            guidance_interval: self.guidance_interval,
            sampler: Some(self.sampler),
            spacing: self.spacing.clone(),
            clip: Some(self.clip()),
        }
    }

    /// Returns the options of a sampler; `options` takes precedence over the defaults.
    pub fn sampler_options(&self, options: &DiffusionOptions) -> SamplerOptions {
        SamplerOptions {
            prediction: self.prediction,
            variance: self.variance,
            sampler: options.sampler.unwrap_or(self.sampler),
            clip: options.clip.unwrap_or(self.clip()),
        }
    }

    /// Averages the squared errors of a batch with the weights of [`Self::loss_weight`].
    ///
    /// # Shapes
    /// - errors: `[B]`, see [`item_mse`](super::item_mse)
    /// - t: B timesteps
    /// - output: `[1]`
    ///
    /// # Panics
    /// If a timestep is not in the schedule.
    pub fn weighted_mean(&self, schedule: &NoiseSchedule, errors: Tensor<1>, t: &[usize]) -> Tensor<1> {
        match self.loss_weight {
            None | Some(LossWeight::Uniform) => errors.mean(),
            Some(weight) => {
                let weights = weight.weights(schedule, self.prediction, t);
                let weights = Tensor::<1>::from_floats(weights.as_slice(), &errors.device());
                (errors * weights).mean()
            }
        }
    }

    /// Checks the values.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let schedule = self.noise_schedule()?;
        self.sampler_options(&self.defaults()).validate()?;
        if !(1..=self.train_steps).contains(&self.sampling_steps) {
            let expected = format!("must be between 1 and train_steps = {}", self.train_steps);
            return Err(ConfigError::new("sampling_steps", self.sampling_steps, expected));
        }
        if !(self.guidance.is_finite() && self.guidance >= 0.0) {
            return Err(ConfigError::new("guidance", self.guidance, "must be finite and at least 0"));
        }
        if self.variance == VarianceType::Analytic {
            let expected = "must be fixed_small, fixed_large or learned_range; a prior's analytic variance is measured";
            return Err(ConfigError::new("variance", "analytic", expected));
        }
        if let Some(weight) = &self.loss_weight {
            weight.validate()?;
        }
        if let Some(interval) = &self.guidance_interval {
            interval.validate()?;
        }
        if let Some(spacing) = &self.spacing {
            spacing.plan(&schedule, Some(self.sampling_steps))?;
        }
        if !(self.vlb_weight.is_finite() && self.vlb_weight >= 0.0) {
            return Err(ConfigError::new("vlb_weight", self.vlb_weight, "must be finite and at least 0"));
        }
        Ok(())
    }
}

/// Samples the timesteps of a training batch.
///
/// Each timestep is uniform, but together they are spread evenly over the schedule, which reduces the variance of the
/// loss of a small batch (Kingma et al. 2021, Variational Diffusion Models, appendix I.1).
pub fn stratified_timesteps(rng: &mut impl Rng, batch_size: usize, train_steps: usize) -> Vec<usize> {
    let offset: f64 = rng.random();
    let t = |i| ((offset + i as f64 / batch_size as f64).fract() * train_steps as f64) as usize;
    (0..batch_size).map(|i| t(i).min(train_steps - 1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn timesteps_of_a_batch_lie_in_different_strata() {
        for seed in 0..20 {
            let mut t = stratified_timesteps(&mut ChaCha8Rng::seed_from_u64(seed), 10, 1000);
            t.sort_unstable();
            assert_eq!(t.len(), 10);
            assert!(t.iter().all(|t| *t < 1000));
            assert!(t.windows(2).all(|pair| (99..=101).contains(&(pair[1] - pair[0]))), "{t:?}");
        }
    }

    #[test]
    fn invalid_values_are_named() {
        let field = |change: fn(&mut DiffusionConfig)| {
            let mut config = DiffusionConfig::cosine(VarianceType::FixedSmall, 25, 1.0);
            config.validate().unwrap();
            change(&mut config);
            config.validate().unwrap_err().field
        };
        assert_eq!(field(|c| c.train_steps = 0), "train_steps");
        assert_eq!(field(|c| c.sampling_steps = 1001), "sampling_steps");
        assert_eq!(field(|c| c.guidance = f64::NAN), "guidance");
        assert_eq!(field(|c| c.vlb_weight = -1.0), "vlb_weight");
        assert_eq!(field(|c| c.variance = VarianceType::Analytic), "variance");
        assert_eq!(field(|c| c.clip = Some(Clip::Range(-1.0))), "clip.range");
        assert_eq!(field(|c| c.spacing = Some(Spacing::Fast27)), "steps");
        assert_eq!(field(|c| c.loss_weight = Some(LossWeight::MinSnr { gamma: 0.0 })), "loss_weight.gamma");
    }

    #[test]
    fn weights_apply_to_the_errors_of_their_timesteps() {
        let device = Device::flex();
        let mut config = DiffusionConfig::cosine(VarianceType::FixedSmall, 25, 1.0);
        config.prediction = PredictionType::XStart;
        let schedule = config.noise_schedule().unwrap();
        let mean = |config: &DiffusionConfig| {
            let errors = Tensor::from_floats([2.0, 4.0], &device);
            f64::from(config.weighted_mean(&schedule, errors, &[100, 900]).into_scalar::<f32>())
        };
        assert_eq!(mean(&config), 3.0);
        config.loss_weight = Some(LossWeight::MinSnr { gamma: 5.0 });
        let expected = (2.0 * schedule.snr(100).min(5.0) + 4.0 * schedule.snr(900)) / 2.0;
        assert!((mean(&config) / expected - 1.0).abs() < 1e-6);
    }
}
