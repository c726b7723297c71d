//! What sampling has in common for the decoder and the upsamplers.

use burn::prelude::*;
use dalle2_core::diffusion::{
    Clip, NoiseSchedule, NoiseSource, Prediction, SamplerOptions, SamplingPlan, draw, guide, sample,
};
use dalle2_core::{Result, SampleOptions, StepEvent, StepHook};

use crate::DiffusionConfig;

/// A diffusion process over images.
pub(crate) struct Process<'a> {
    pub config: &'a DiffusionConfig,
    pub schedule: &'a NoiseSchedule,
}

/// The network's output, split into the prediction and the variance.
pub(crate) struct Output {
    pub mean: Tensor<4>,
    pub variance: Option<Tensor<4>>,
}

/// Splits `[B, 6, H, W]` into two halves when the variance is learned.
pub(crate) fn split_variance(out: Tensor<4>, learned: bool) -> Output {
    match learned {
        true => Output { mean: out.clone().slice_dim(1, 0..3), variance: Some(out.slice_dim(1, 3..6)) },
        false => Output { mean: out, variance: None },
    }
}

impl Output {
    /// Guides the prediction of a batch `[uncond, cond]`; the variance comes from the conditional half.
    ///
    /// # Shapes
    /// `[2B, C, H, W]` -> `[B, C, H, W]`
    pub fn guided(self, scale: f64) -> Self {
        let b = self.mean.dims()[0] / 2;
        let uncond = self.mean.clone().slice_dim(0, 0..b);
        let cond = self.mean.slice_dim(0, b..2 * b);
        Self { mean: guide(uncond, cond, scale), variance: self.variance.map(|v| v.slice_dim(0, b..2 * b)) }
    }
}

impl Process<'_> {
    /// Checks options against this process.
    pub fn validate(&self, options: &SampleOptions) -> Result<()> {
        options.validate(self.config.train_steps)
    }

    /// The timesteps of a generation.
    pub fn plan(&self, options: &SampleOptions) -> Result<SamplingPlan> {
        Ok(SamplingPlan::new(self.schedule, options.steps.unwrap_or(self.config.sampling_steps))?)
    }

    /// Draws images by the reverse process, starting from noise.
    pub fn sample(
        &self,
        shape: [usize; 4],
        options: &SampleOptions,
        mut denoise: impl FnMut(Tensor<4>, usize) -> Output,
        noise: &mut dyn NoiseSource,
        hook: StepHook<'_>,
        device: &Device,
    ) -> Result<Tensor<4>> {
        self.validate(options)?;
        let plan = self.plan(options)?;
        let sampler_options = SamplerOptions {
            prediction: self.config.prediction,
            variance: self.config.variance,
            sampler: options.sampler.unwrap_or(self.config.sampler),
            clip: Clip::Range(1.0),
        };
        let x_t = draw(noise, shape, device)?;
        let images = sample(
            &plan,
            &sampler_options,
            x_t,
            &mut |x_t, t| {
                let Output { mean, variance } = denoise(x_t, t);
                Ok(Prediction { output: mean, variance })
            },
            noise,
            &mut |step, total, x_start| hook(StepEvent { step, total, x_start: Some(x_start) }),
        )?;
        Ok(images.clamp(-1.0, 1.0))
    }
}
