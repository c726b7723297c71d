//! Sampling options of each kind of stage. `None` selects the model's default, which its configuration stores.

use crate::diffusion::{Clip, GuidanceInterval, NoiseSchedule, Sampler, SamplingPlan, Spacing};
use crate::{ConfigError, Result};

/// Options of a decoder, or of another diffusion process.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DiffusionOptions {
    /// Number of sampling steps, from 1 to the number of training timesteps.
    pub steps: Option<usize>,
    /// Classifier-free guidance scale, finite and at least 0; 1 disables guidance.
    pub guidance: Option<f64>,
    /// The timesteps at which guidance is active.
    pub guidance_interval: Option<GuidanceInterval>,
    /// The sampler.
    pub sampler: Option<Sampler>,
    /// The spacing of the timesteps over the schedule.
    pub spacing: Option<Spacing>,
    /// Clipping of the estimates of the clean images.
    pub clip: Option<Clip>,
}

/// Options of a prior.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PriorOptions {
    /// Number of sampling steps of a diffusion prior, from 1 to the number of training timesteps.
    pub steps: Option<usize>,
    /// Classifier-free guidance scale, finite and at least 0; 1 disables guidance.
    pub guidance: Option<f64>,
    /// The timesteps at which the guidance of a diffusion prior is active.
    pub guidance_interval: Option<GuidanceInterval>,
    /// The sampler of a diffusion prior.
    pub sampler: Option<Sampler>,
    /// The spacing of a diffusion prior's timesteps over the schedule.
    pub spacing: Option<Spacing>,
    /// Number of candidates per caption; the prior returns the one with the highest cosine of z_i and z_t.
    pub candidates: Option<usize>,
    /// Divisor of an autoregressive prior's logits, finite and at least 0; 0 selects the most probable value.
    pub temperature: Option<f64>,
    /// Nucleus of an autoregressive prior: samples from the most probable values with this total probability, in (0, 1].
    pub top_p: Option<f64>,
}

/// Options of an upsampler.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct UpsamplerOptions {
    /// Number of sampling steps, from 1 to the number of training timesteps.
    pub steps: Option<usize>,
    /// The sampler.
    pub sampler: Option<Sampler>,
    /// The spacing of the timesteps over the schedule.
    pub spacing: Option<Spacing>,
    /// Clipping of the estimates of the clean images.
    pub clip: Option<Clip>,
    /// Tiles of the evaluation; `None` evaluates the image in one piece.
    pub tiling: Option<Tiling>,
}

/// Options of DDIM inversion in a stage with options `O`.
#[derive(Debug, Clone, PartialEq)]
pub struct DdimInversion<O> {
    /// Options of sampling; their sampler is ignored in favour of DDIM with η = 0.
    pub sampling: O,
    /// Evaluations of the network per step, from 1 to 100.
    pub evaluations: usize,
}

/// Tiles of an upsampler's evaluation; the tile bounds the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiling {
    /// Side of a tile in pixels of the large image.
    pub size: usize,
    /// Pixels shared by neighbouring tiles, at most half of a side; results are blended there.
    pub overlap: usize,
}

impl DiffusionOptions {
    /// Checks the values against the number of training timesteps.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self, train_steps: usize) -> Result<(), ConfigError> {
        if let Some(steps) = self.steps
            && !(1..=train_steps).contains(&steps)
        {
            return Err(ConfigError::new("steps", steps, format!("must be between 1 and {train_steps}")));
        }
        if let Some(guidance) = self.guidance
            && !(guidance.is_finite() && guidance >= 0.0)
        {
            return Err(ConfigError::new("guidance", guidance, "must be finite and at least 0"));
        }
        self.guidance_interval.map_or(Ok(()), |interval| interval.validate())
    }

    /// Returns the sampling plan of these steps and this spacing, or of the model's defaults. A spacing with a fixed
    /// number of steps takes precedence over the default number.
    ///
    /// # Errors
    /// If the steps or the spacing are incompatible with the schedule or with each other.
    pub fn plan(&self, schedule: &NoiseSchedule, defaults: &Self) -> Result<SamplingPlan, ConfigError> {
        let spacing = self.spacing.as_ref().or(defaults.spacing.as_ref()).unwrap_or(&Spacing::Even);
        // Requested steps replace a default spacing that has another number of them.
        let spacing = match (&self.spacing, self.steps, spacing.num_steps()) {
            (None, Some(steps), Some(fixed)) if steps != fixed => &Spacing::Even,
            _ => spacing,
        };
        let steps = self.steps.or_else(|| spacing.num_steps()).or(defaults.steps);
        spacing.plan(schedule, steps)
    }

    /// Whether guidance is active at timestep `t` of `train_steps`.
    pub fn guides_at(&self, t: usize, train_steps: usize) -> bool {
        self.guidance_interval.unwrap_or(GuidanceInterval::ALL).contains(t, train_steps)
    }
}

impl PriorOptions {
    /// Returns the options of the diffusion process.
    pub fn diffusion(&self) -> DiffusionOptions {
        DiffusionOptions {
            steps: self.steps,
            guidance: self.guidance,
            guidance_interval: self.guidance_interval,
            sampler: self.sampler,
            spacing: self.spacing.clone(),
            clip: None,
        }
    }

    /// Checks the values of a diffusion prior against its number of training timesteps.
    ///
    /// # Errors
    /// Names the first field that is out of range, or that only an autoregressive prior supports.
    pub fn validate_diffusion(&self, train_steps: usize) -> Result<(), ConfigError> {
        self.diffusion().validate(train_steps)?;
        if self.candidates == Some(0) {
            return Err(ConfigError::new("candidates", 0, "must be at least 1"));
        }
        for (field, value) in [("temperature", self.temperature), ("top_p", self.top_p)] {
            if let Some(value) = value {
                return Err(ConfigError::new(field, value, "must be unset: only an autoregressive prior has it"));
            }
        }
        Ok(())
    }
}

impl UpsamplerOptions {
    /// Returns the options of the diffusion process.
    pub fn diffusion(&self) -> DiffusionOptions {
        DiffusionOptions {
            steps: self.steps,
            sampler: self.sampler,
            spacing: self.spacing.clone(),
            clip: self.clip,
            ..Default::default()
        }
    }
}

/// Drops guidance, which an upsampler does not have.
impl From<DiffusionOptions> for UpsamplerOptions {
    fn from(options: DiffusionOptions) -> Self {
        let DiffusionOptions { steps, sampler, spacing, clip, .. } = options;
        Self { steps, sampler, spacing, clip, tiling: None }
    }
}

impl Tiling {
    /// Checks the tiles against the stride of a network.
    ///
    /// # Errors
    /// If a number is not a multiple of `stride`, the side is 0, or the overlap exceeds half of it.
    pub fn validate(&self, stride: usize) -> Result<(), ConfigError> {
        for (field, value) in [("tiling.size", self.size), ("tiling.overlap", self.overlap)] {
            if !value.is_multiple_of(stride) {
                return Err(ConfigError::new(field, value, format!("must be a multiple of {stride}")));
            }
        }
        if self.size == 0 || 2 * self.overlap > self.size {
            let expected = format!("must be at most half of tiling.size = {}, which must not be 0", self.size);
            return Err(ConfigError::new("tiling.overlap", self.overlap, expected));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::BetaSchedule;

    #[test]
    fn plans_prefer_the_request_to_the_defaults() {
        let schedule = NoiseSchedule::new(BetaSchedule::Cosine, 1000).unwrap();
        let steps = |options: DiffusionOptions, defaults: DiffusionOptions| {
            options.plan(&schedule, &defaults).map(|plan| plan.timesteps())
        };
        let none = DiffusionOptions::default;
        let of = |steps, spacing| DiffusionOptions { steps, spacing, ..none() };
        let even = |n| SamplingPlan::new(&schedule, n).unwrap().timesteps();
        let sections = Some(Spacing::Sections(vec![4, 2]));

        assert_eq!(steps(none(), of(Some(8), None)).unwrap(), even(8));
        assert_eq!(steps(of(Some(3), None), of(Some(8), None)).unwrap(), even(3));
        let own = steps(none(), of(Some(6), sections.clone())).unwrap();
        assert_eq!(own.len(), 6);
        assert_ne!(own, even(6));
        assert_eq!(steps(of(None, sections.clone()), of(Some(8), None)).unwrap(), own);
        assert_eq!(steps(of(Some(8), None), of(Some(6), sections.clone())).unwrap(), even(8));
        let message = steps(of(Some(8), sections), none()).unwrap_err().to_string();
        assert!(message.contains("steps") && message.contains('6'), "{message}");
    }

    #[test]
    fn guidance_is_active_within_its_interval() {
        let guidance_interval = Some(GuidanceInterval { low: 0.2, high: 0.5 });
        let options = DiffusionOptions { guidance_interval, ..Default::default() };
        assert!(options.guides_at(300, 1000) && !options.guides_at(100, 1000) && !options.guides_at(501, 1000));
        assert!(DiffusionOptions::default().guides_at(999, 1000));
        let bad = DiffusionOptions { guidance_interval: Some(GuidanceInterval { low: 0.9, high: 0.1 }), ..options };
        assert!(bad.validate(1000).unwrap_err().to_string().contains("guidance_interval"));
    }
}
