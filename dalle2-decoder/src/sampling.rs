//! Sampling and inversion, shared by the decoder and the upsamplers.

use burn::prelude::*;
use dalle2_core::diffusion::{
    Clip, DiffusionConfig, GuidanceInterval, InversionOptions, Known, NoiseSchedule, NoiseSource, Prediction,
    Resampling, SamplerOptions, SamplingPlan, draw, guide, invert, repaint, sample,
};
use dalle2_core::{DiffusionOptions, Error, Inpainting, Result, StepEvent, StepHook};

/// The known pixels of an inpainting at the size of the network.
pub(crate) struct KnownPixels {
    pub known: Known<4>,
    pub resampling: Resampling,
}

impl KnownPixels {
    /// Resizes to a batch `[B, 3, H, W]`. A network with channels for known pixels needs no resampling.
    pub fn new(keep: &Inpainting, shape: [usize; 4], inpainting_network: bool) -> Result<Self> {
        let known = keep.known([shape[2], shape[3]])?;
        keep.check_batch(shape[0])?;
        Ok(Self { known, resampling: resampling(keep.resampling(), inpainting_network) })
    }
}

/// The resampling of a network: none if it has channels for known pixels.
pub(crate) fn resampling(requested: Resampling, inpainting_network: bool) -> Resampling {
    if inpainting_network { Resampling { rounds: 1, jump: 1 } } else { requested }
}

/// The direction of a run along the diffusion process.
pub(crate) enum Task<'a> {
    /// From noise to images, around the unedited pixels of other images.
    Sample { keep: Option<&'a Inpainting>, noise: &'a mut dyn NoiseSource },
    /// From images to noise.
    Invert { images: &'a Tensor<4>, evaluations: usize },
}

impl Task<'_> {
    /// The known pixels at the size of a batch `[B, 3, H, W]`.
    pub fn known_pixels(&self, shape: [usize; 4], inpainting_network: bool) -> Result<Option<KnownPixels>> {
        match self {
            Self::Sample { keep: Some(keep), .. } => KnownPixels::new(keep, shape, inpainting_network).map(Some),
            _ => Ok(None),
        }
    }
}

/// The network's output, split into the prediction and the variance.
pub(crate) struct NetworkOutput {
    pub mean: Tensor<4>,
    pub variance: Option<Tensor<4>>,
}

/// Splits `[B, 6, H, W]` into two halves if the variance is learned.
pub(crate) fn split_variance(out: Tensor<4>, learned: bool) -> NetworkOutput {
    if learned {
        NetworkOutput { mean: out.clone().slice_dim(1, 0..3), variance: Some(out.slice_dim(1, 3..6)) }
    } else {
        NetworkOutput { mean: out, variance: None }
    }
}

impl NetworkOutput {
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

impl From<NetworkOutput> for Prediction<4> {
    fn from(NetworkOutput { mean, variance }: NetworkOutput) -> Self {
        Self { output: mean, variance }
    }
}

/// Checked options of one run, with its sampling plan.
pub(crate) struct SamplingRun<'a> {
    config: &'a DiffusionConfig,
    schedule: &'a NoiseSchedule,
    pub plan: SamplingPlan,
    sampler: SamplerOptions,
    /// Guidance scale; 1 disables guidance.
    pub guidance: f64,
    /// The timesteps at which guidance is active, if not all.
    pub guidance_interval: Option<GuidanceInterval>,
}

impl<'a> SamplingRun<'a> {
    /// Checks options against a diffusion process and plans its timesteps.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn new(config: &'a DiffusionConfig, schedule: &'a NoiseSchedule, options: &DiffusionOptions) -> Result<Self> {
        options.validate(config.train_steps)?;
        let plan = options.plan(schedule, &config.defaults())?;
        let sampler = config.sampler_options(options);
        sampler.validate()?;
        let guidance = options.guidance.unwrap_or(config.guidance);
        let interval = options.guidance_interval.or(config.guidance_interval).filter(|_| guidance != 1.0);
        Ok(Self { config, schedule, plan, sampler, guidance, guidance_interval: interval })
    }

    /// The number of steps that sampling reports.
    pub fn num_steps(&self, resampling: Option<Resampling>) -> usize {
        let steps = self.plan.num_steps();
        resampling.map_or(steps, |resampling| resampling.evaluations(steps))
    }

    /// The clipping of the estimates of the clean images.
    pub fn clip(&self) -> Clip {
        self.sampler.clip
    }

    /// Whether guidance is active at timestep `t`.
    pub fn guides_at(&self, t: usize) -> bool {
        let interval = self.guidance_interval;
        self.guidance != 1.0 && interval.is_none_or(|interval| interval.contains(t, self.config.train_steps))
    }

    /// Converts a prediction to the clean images, clipped as in the sampler.
    pub fn x_start(&self, output: &NetworkOutput, x_t: Tensor<4>, t: usize) -> Tensor<4> {
        let t = vec![t; x_t.dims()[0]];
        self.clip().apply(self.config.prediction.x_start(self.schedule, output.mean.clone(), x_t, &t))
    }

    /// Samples images of a shape, or inverts images of this shape.
    ///
    /// # Shapes
    /// `shape`: `[B, 3, H, W]` -> `[B, 3, H, W]`
    pub fn run(
        &self,
        task: Task<'_>,
        batch: &Batch<'_>,
        mut denoise: impl FnMut(Tensor<4>, usize) -> NetworkOutput,
        hook: StepHook<'_>,
    ) -> Result<Tensor<4>> {
        let mut denoise = |x_t, t| Ok(denoise(x_t, t).into());
        let mut on_step = |step, total, x_start: &Tensor<4>| hook(StepEvent { step, total, x_start: Some(x_start) });
        let (plan, sampler, shape) = (&self.plan, &self.sampler, batch.shape);
        match task {
            Task::Sample { noise, .. } => {
                let x_t = draw(noise, shape, batch.device)?;
                let images = match batch.known {
                    Some(KnownPixels { known, resampling }) => {
                        repaint(plan, sampler, (known, *resampling), x_t, &mut denoise, noise, &mut on_step)?
                    }
                    None => sample(plan, sampler, x_t, &mut denoise, noise, &mut on_step)?,
                };
                Ok(images.clamp(-1.0, 1.0))
            }
            Task::Invert { images, evaluations } => {
                if images.dims() != shape {
                    let message = format!("cannot invert images of shape {:?}: expected {shape:?}", images.dims());
                    return Err(Error::Input(message));
                }
                if !images.clone().abs().sum().into_scalar::<f32>().is_finite() {
                    return Err(Error::Input("an image to invert holds a value that is not finite".into()));
                }
                let options = InversionOptions { prediction: self.config.prediction, clip: self.clip(), evaluations };
                invert(plan, &options, images.clone(), &mut denoise, &mut on_step)
            }
        }
    }
}

/// The images of a run.
pub(crate) struct Batch<'a> {
    /// `[B, 3, H, W]`.
    pub shape: [usize; 4],
    pub device: &'a Device,
    pub known: Option<&'a KnownPixels>,
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
        assert_eq!(variance, [15.0, 16.0, 17.0, 21.0, 22.0, 23.0], "the conditional half, unchanged");
        assert!(split_variance(out.slice_dim(1, 0..3), false).guided(3.0).variance.is_none());
    }
}
