//! The noise from which DDIM draws given images (DALL·E 2, section 3.1).

use burn::prelude::*;
use dalle2_core::diffusion::{InversionOptions, Prediction, invert};
use dalle2_core::{Error, Result, SampleOptions, StepEvent, StepHook};

use crate::sampling::{Output, Process};

impl Process<'_> {
    /// Turns images into noise along the same timesteps that [`Process::sample`] takes with these options.
    pub fn invert(
        &self,
        images: Tensor<4>,
        options: &SampleOptions,
        evaluations: usize,
        mut denoise: impl FnMut(Tensor<4>, usize) -> Output,
        hook: StepHook<'_>,
    ) -> Result<Tensor<4>> {
        self.validate(options)?;
        let sum = images.clone().abs().sum().into_scalar::<f32>();
        if !sum.is_finite() {
            return Err(Error::Input("an image to invert holds a value that is not finite".into()));
        }
        let clip = self.config.sampler_options(options).clip;
        let inversion = InversionOptions { prediction: self.config.prediction, clip, evaluations };
        let mut denoise = |x_t, t| {
            let Output { mean, variance } = denoise(x_t, t);
            Ok(Prediction { output: mean, variance })
        };
        let mut on_step = |step, total, x_start: &Tensor<4>| hook(StepEvent { step, total, x_start: Some(x_start) });
        let plan = options.plan(self.schedule, &self.config.defaults())?;
        invert(&plan, &inversion, images, &mut denoise, &mut on_step)
    }
}
