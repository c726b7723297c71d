//! What sampling has in common for the decoder and the upsamplers.

use burn::prelude::*;
use dalle2_core::diffusion::{
    Clip, Known, NoiseSchedule, NoiseSource, Prediction, Resampling, SamplingPlan, draw, guide, repaint, sample,
};
use dalle2_core::{Error, Inpainting, Result, SampleOptions, StepEvent, StepHook};

use crate::DiffusionConfig;

/// The part of an image that is kept, at the size that is drawn.
pub(crate) struct Kept {
    pub known: Known<4>,
    pub resampling: Resampling,
}

impl Kept {
    /// At the size of a batch `[B, 3, H, W]`. A network that reads known pixels needs no resampling.
    pub fn new(inpainting: &Inpainting, shape: [usize; 4], network_reads_it: bool) -> Result<Self> {
        let known = inpainting.known([shape[2], shape[3]])?;
        let n = known.x_start.dims()[0];
        if n != 1 && n != shape[0] {
            let message = format!("{n} images to keep for {} that are drawn: give one, or as many", shape[0]);
            return Err(Error::Input(message));
        }
        let once = Resampling { rounds: 1, jump: 1 };
        Ok(Self { known, resampling: if network_reads_it { once } else { inpainting.resampling() } })
    }
}

/// What a network is asked for.
#[allow(clippy::large_enum_variant, reason = "one value lives per generation")]
pub(crate) enum Task<'a> {
    /// Images, around the kept part of others if there are any.
    Draw { kept: Option<&'a Inpainting>, noise: &'a mut dyn NoiseSource },
    /// The noise of images.
    Invert { images: Tensor<4>, evaluations: usize },
}

impl<'a> Task<'a> {
    /// The images of which a part is kept.
    pub fn kept(&self) -> Option<&'a Inpainting> {
        match self {
            Self::Draw { kept, .. } => *kept,
            Self::Invert { .. } => None,
        }
    }
}

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
    /// The clean images that the output implies, as the sampler will clip them.
    pub fn x_start(&self, process: &Process<'_>, clip: Clip, x_t: Tensor<4>, t: usize) -> Tensor<4> {
        let t = vec![t; x_t.dims()[0]];
        clip.apply(process.config.prediction.x_start(process.schedule, self.mean.clone(), x_t, &t))
    }

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
        options.validate(self.config.train_steps)?;
        self.plan(options)?;
        Ok(self.config.sampler_options(options).validate()?)
    }

    /// The timesteps of a generation.
    pub fn plan(&self, options: &SampleOptions) -> Result<SamplingPlan> {
        options.plan(self.schedule, &self.config.defaults())
    }

    /// Does what the task asks for: draws images of this shape, or inverts images that must have it.
    pub fn run(
        &self,
        (shape, device): ([usize; 4], &Device),
        (task, kept): (Task<'_>, Option<&Kept>),
        options: &SampleOptions,
        denoise: impl FnMut(Tensor<4>, usize) -> Output,
        hook: StepHook<'_>,
    ) -> Result<Tensor<4>> {
        match task {
            Task::Draw { noise, .. } => self.sample((shape, device), kept, options, denoise, noise, hook),
            Task::Invert { images, .. } if images.dims() != shape => {
                let found = images.dims();
                Err(Error::Input(format!("images of shape {found:?} to invert: expected {shape:?}")))
            }
            Task::Invert { images, evaluations } => self.invert(images, options, evaluations, denoise, hook),
        }
    }

    /// Draws images by the reverse process, starting from noise; around the kept part of images if there are any.
    pub fn sample(
        &self,
        (shape, device): ([usize; 4], &Device),
        kept: Option<&Kept>,
        options: &SampleOptions,
        mut denoise: impl FnMut(Tensor<4>, usize) -> Output,
        noise: &mut dyn NoiseSource,
        hook: StepHook<'_>,
    ) -> Result<Tensor<4>> {
        self.validate(options)?;
        let plan = self.plan(options)?;
        let sampler_options = self.config.sampler_options(options);
        let x_t = draw(noise, shape, device)?;
        let mut denoise = |x_t, t| {
            let Output { mean, variance } = denoise(x_t, t);
            Ok(Prediction { output: mean, variance })
        };
        let mut on_step = |step, total, x_start: &Tensor<4>| hook(StepEvent { step, total, x_start: Some(x_start) });
        let Some(kept) = kept else {
            let images = sample(&plan, &sampler_options, x_t, &mut denoise, noise, &mut on_step)?;
            return Ok(images.clamp(-1.0, 1.0));
        };
        let with = (&kept.known, kept.resampling);
        let images = repaint(&plan, &sampler_options, with, x_t, &mut denoise, noise, &mut on_step)?;
        Ok(images.clamp(-1.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guidance_moves_the_mean_and_leaves_the_conditional_variance() {
        let device = Device::flex();
        // Two items: unconditional and conditional halves of means and variances that differ.
        let values: Vec<f32> = (0..24).map(|i| i as f32).collect();
        let out = Tensor::<4>::from_data(TensorData::new(values, [4, 6, 1, 1]), &device);
        let guided = split_variance(out.clone(), true).guided(3.0);
        let expected = |cond: f32| cond + 2.0 * 12.0;
        let mean: Vec<f32> = [12.0, 13.0, 14.0, 18.0, 19.0, 20.0].map(expected).to_vec();
        assert_eq!(guided.mean.into_data().try_to_vec::<f32>().unwrap(), mean);
        let variance = guided.variance.unwrap().into_data().try_to_vec::<f32>().unwrap();
        assert_eq!(variance, [15.0, 16.0, 17.0, 21.0, 22.0, 23.0], "the conditional half, as it is");
        assert!(split_variance(out.slice_dim(1, 0..3), false).guided(3.0).variance.is_none());
    }
}
