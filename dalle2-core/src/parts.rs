//! The traits in which the stages of a pipeline meet.

use std::fmt::Debug;
use std::ops::ControlFlow;
use std::path::Path;

use burn::prelude::*;

use crate::diffusers::IndexEntry;
use crate::diffusion::{Clip, GuidanceInterval, NoiseSchedule, NoiseSource, Sampler, SamplingPlan, Spacing};
use crate::{ConfigError, Error, FloatType, Inpainting, Result, TextCondition};

/// A part of a pipeline as it stands on disk.
///
/// Parts of your own that a pipeline need not save can keep the default of [`Component::save`].
pub trait Component {
    /// Class name that `model_index.json` and the part's `config.json` carry.
    fn class_name(&self) -> &str;

    /// Writes the part's configuration and weights into `dir`.
    ///
    /// # Errors
    /// When a file cannot be written, a value is not finite in `float_type`, or the part has no form on disk.
    fn save(&self, dir: &Path, float_type: FloatType) -> Result<()> {
        let _ = float_type;
        Err(Error::Mismatch(format!("{}: a {} has no form on disk", dir.display(), self.class_name())))
    }

    /// What keeps the part from being written in the layout of diffusers' unCLIP pipelines; empty when nothing does.
    fn diffusers_faults(&self) -> Vec<String> {
        vec![format!("diffusers has no {}", self.class_name())]
    }

    /// Writes the part's folders below `root` in the layout of diffusers' unCLIP pipelines, and returns their entries in
    /// `model_index.json`. Call it only when [`Component::diffusers_faults`] finds none.
    ///
    /// # Errors
    /// When a file cannot be written, a value is not finite in `float_type`, or the part has no such form.
    fn save_diffusers(&self, root: &Path, float_type: FloatType) -> Result<Vec<IndexEntry>> {
        let _ = float_type;
        Err(Error::Mismatch(format!("{}: diffusers has no {}", root.display(), self.class_name())))
    }
}

/// Whether a generation goes on after a step.
pub type Flow = ControlFlow<()>;

/// One finished sampling step, as a sampler reports it.
#[derive(Debug, Clone, Copy)]
pub struct StepEvent<'a> {
    /// Steps done, from 1 to `total`.
    pub step: usize,
    /// Steps in all.
    pub total: usize,
    /// The current estimate of the clean images `[B, 3, H, W]` in [−1, 1]; none for stages that work on embeddings.
    pub x_start: Option<&'a Tensor<4>>,
}

/// Called after each sampling step; [`ControlFlow::Break`] stops the stage with [`Error::Cancelled`].
pub type StepHook<'a> = &'a mut dyn FnMut(StepEvent<'_>) -> Flow;

/// Tiles in which an upsampler's network is evaluated, so that memory is bounded by the tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiling {
    /// Side of a tile in pixels of the large image.
    pub size: usize,
    /// Pixels that neighbouring tiles share, at most half of a side; their results are blended there.
    pub overlap: usize,
}

impl Tiling {
    /// Checks the tiles against the multiple that a network's sides must be of.
    ///
    /// # Errors
    /// When a number is no multiple of `stride`, the side is 0, or the overlap is more than half of it.
    pub fn validate(&self, stride: usize) -> Result<(), ConfigError> {
        for (field, value) in [("tiling.size", self.size), ("tiling.overlap", self.overlap)] {
            if !value.is_multiple_of(stride) {
                return Err(ConfigError::new(field, value, format!("must be a multiple of {stride}")));
            }
        }
        match self.size > 0 && 2 * self.overlap <= self.size {
            true => Ok(()),
            false => {
                let expected = format!("must be at most half of tiling.size = {}, which must not be 0", self.size);
                Err(ConfigError::new("tiling.overlap", self.overlap, expected))
            }
        }
    }
}

/// How a stage samples. `None` means the stage's own default, which is stored in its configuration.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SampleOptions {
    /// Number of sampling steps, at least 1 and at most the number of training timesteps.
    pub steps: Option<usize>,
    /// Classifier-free guidance scale, finite and at least 0; 1 means no guidance.
    pub guidance: Option<f64>,
    /// The timesteps at which guidance acts; all of them if not set.
    pub guidance_interval: Option<GuidanceInterval>,
    /// The sampler.
    pub sampler: Option<Sampler>,
    /// How the timesteps are spread over the schedule.
    pub spacing: Option<Spacing>,
    /// What is done to the estimates of the clean images; the prior has its own bound and ignores this.
    pub clip: Option<Clip>,
    /// Upsamplers only: tiles in which the network is evaluated; the whole image at once if not set.
    pub tiling: Option<Tiling>,
    /// Prior only: candidates per caption, of which the one with the highest z_i · z_t is kept.
    pub candidates: Option<usize>,
    /// Autoregressive prior only: divides the logits, finite and at least 0; 0 takes the most probable value, 1 leaves
    /// the model's distribution.
    pub temperature: Option<f64>,
    /// Autoregressive prior only: the most probable values that together have this probability are drawn from, in (0, 1].
    pub top_p: Option<f64>,
}

impl SampleOptions {
    /// Checks the values for a diffusion stage, against its number of training timesteps.
    ///
    /// # Errors
    /// Names the first field that is out of range or that no diffusion stage has.
    pub fn validate(&self, train_steps: usize) -> Result<()> {
        if let Some(steps) = self.steps
            && !(1..=train_steps).contains(&steps)
        {
            return Err(ConfigError::new("steps", steps, format!("must be between 1 and {train_steps}")).into());
        }
        if let Some(guidance) = self.guidance
            && !(guidance.is_finite() && guidance >= 0.0)
        {
            return Err(ConfigError::new("guidance", guidance, "must be finite and at least 0").into());
        }
        if let Some(interval) = self.guidance_interval {
            interval.validate()?;
        }
        if self.candidates == Some(0) {
            return Err(ConfigError::new("candidates", 0, "must be at least 1").into());
        }
        for (field, value) in [("temperature", self.temperature), ("top_p", self.top_p)] {
            if let Some(value) = value {
                let expected = "only an autoregressive prior has it: this stage samples by diffusion";
                return Err(ConfigError::new(field, value, expected).into());
            }
        }
        Ok(())
    }

    /// The plan of a generation: this spacing and number of steps, or the model's own. A spacing that knows its number of
    /// steps does not take the model's.
    ///
    /// # Errors
    /// When the steps or the spacing do not fit the schedule or each other.
    pub fn plan(&self, schedule: &NoiseSchedule, defaults: &Self) -> Result<SamplingPlan> {
        let spacing = self.spacing.as_ref().or(defaults.spacing.as_ref()).unwrap_or(&Spacing::Even);
        // Steps of a request replace a model's own spacing that has another number of them.
        let spacing = match (&self.spacing, self.steps, spacing.num_steps()) {
            (None, Some(steps), Some(own)) if steps != own => &Spacing::Even,
            _ => spacing,
        };
        let steps = self.steps.or_else(|| spacing.num_steps()).or(defaults.steps);
        Ok(spacing.plan(schedule, steps)?)
    }

    /// Whether guidance acts at timestep `t` of `train_steps`.
    pub fn guides_at(&self, t: usize, train_steps: usize) -> bool {
        self.guidance_interval.unwrap_or(GuidanceInterval::ALL).contains(t, train_steps)
    }
}

/// Turns captions into [`TextCondition`]s.
pub trait TextEncoder: Component + Debug + Send + Sync {
    /// Encodes a batch of captions; the empty caption is the one used for guidance.
    ///
    /// # Errors
    /// When a caption has more tokens than the context holds, naming the caption and both numbers.
    fn encode(&self, captions: &[&str]) -> Result<TextCondition>;
    /// Width D of the joint embedding space.
    fn embed_dim(&self) -> usize;
    /// Width W of the token encodings.
    fn token_width(&self) -> usize;
    /// Number S of token positions.
    fn context_length(&self) -> usize;
}

/// Turns images into embeddings of the joint space.
pub trait ImageEncoder: Component + Debug + Send + Sync {
    /// Embeds images `[B, 3, H, W]` in [−1, 1] of any size as `[B, D]`, as the projection gives them (not normalised).
    ///
    /// # Errors
    /// When the tensor is not an RGB batch.
    fn encode(&self, images: Tensor<4>) -> Result<Tensor<2>>;
    /// Width D of the joint embedding space.
    fn embed_dim(&self) -> usize;
}

/// P(z_i | y): draws CLIP image embeddings for captions (DALL·E 2, section 2.2).
pub trait Prior: Component + Debug + Send + Sync {
    /// Draws one embedding `[B, D]` per caption, in CLIP's space.
    ///
    /// `null` is the encoded empty caption, batch 1, used for guidance. Noise for row b comes from item b of `noise`.
    ///
    /// # Errors
    /// When options are out of range, widths do not fit, or the hook cancels.
    fn sample(
        &self,
        text: &TextCondition,
        null: &TextCondition,
        options: &SampleOptions,
        noise: &mut dyn NoiseSource,
        hook: StepHook<'_>,
    ) -> Result<Tensor<2>>;
    /// Width D of the embeddings it draws.
    fn embed_dim(&self) -> usize;
    /// Width W of the token encodings it reads.
    fn token_width(&self) -> usize;
    /// Number S of token positions it reads.
    fn context_length(&self) -> usize;
    /// The sampling defaults of this model, every field that applies filled in.
    fn defaults(&self) -> SampleOptions;
    /// Checks options without sampling.
    ///
    /// # Errors
    /// Names the field that is out of range.
    fn validate(&self, options: &SampleOptions) -> Result<()>;
}

/// P(x | z_i, y): draws images for embeddings and captions (DALL·E 2, section 2.1).
pub trait Decoder: Component + Debug + Send + Sync {
    /// Draws images `[B, 3, size, size]` in [−1, 1] for image embeddings `[B, D]` in CLIP's space.
    ///
    /// `null` is the encoded empty caption, batch 1.
    ///
    /// # Errors
    /// When options are out of range, widths do not fit, or the hook cancels.
    fn sample(
        &self,
        embedding: Tensor<2>,
        text: &TextCondition,
        null: &TextCondition,
        options: &SampleOptions,
        noise: &mut dyn NoiseSource,
        hook: StepHook<'_>,
    ) -> Result<Tensor<4>>;
    /// The noise `[B, 3, size, size]` from which [`Decoder::sample`] with DDIM, η = 0 and the same other options draws these
    /// images `[B, 3, size, size]` in [−1, 1] again, for embeddings `[B, D]` and the encoded captions and empty caption.
    ///
    /// `evaluations` of the network, at least 1, go into each step; the hook is called after each of them. A decoder that
    /// cannot do this can keep the default, which says so.
    ///
    /// # Errors
    /// When options are out of range, shapes do not fit, the hook cancels, or this decoder cannot invert.
    fn invert(
        &self,
        images: Tensor<4>,
        embedding: Tensor<2>,
        texts: (&TextCondition, &TextCondition),
        options: &SampleOptions,
        evaluations: usize,
        hook: StepHook<'_>,
    ) -> Result<Tensor<4>> {
        let _ = (images, embedding, texts, options, evaluations, hook);
        Err(Error::Mismatch(format!("a {} cannot find the noise of an image", self.class_name())))
    }
    /// Like [`Decoder::sample`], around the kept part of images, which comes back as it is at this size.
    ///
    /// # Errors
    /// As [`Decoder::sample`], when the kept images do not fit the batch, or when this decoder cannot inpaint, which is the
    /// default.
    fn inpaint(
        &self,
        embedding: Tensor<2>,
        (text, null): (&TextCondition, &TextCondition),
        inpainting: &Inpainting,
        options: &SampleOptions,
        noise: &mut dyn NoiseSource,
        hook: StepHook<'_>,
    ) -> Result<Tensor<4>> {
        let _ = (embedding, text, null, inpainting, options, noise, hook);
        Err(Error::Mismatch(format!("a {} cannot inpaint", self.class_name())))
    }
    /// Width D of the embeddings it reads.
    fn embed_dim(&self) -> usize;
    /// Width W of the token encodings it reads.
    fn token_width(&self) -> usize;
    /// Side of the images in pixels.
    fn image_size(&self) -> usize;
    /// The sampling defaults of this model, every field that applies filled in.
    fn defaults(&self) -> SampleOptions;
    /// Checks options without sampling.
    ///
    /// # Errors
    /// Names the field that is out of range.
    fn validate(&self, options: &SampleOptions) -> Result<()>;
}

/// P(x_high | x_low): draws larger images (DALL·E 2, section 2.1).
pub trait Upsampler: Component + Debug + Send + Sync {
    /// Enlarges images `[B, 3, H, W]` in [−1, 1] by [`Upsampler::factor`].
    ///
    /// # Errors
    /// When options are out of range, a side does not fit the network's stride, or the hook cancels.
    fn sample(
        &self,
        images: Tensor<4>,
        options: &SampleOptions,
        noise: &mut dyn NoiseSource,
        hook: StepHook<'_>,
    ) -> Result<Tensor<4>>;
    /// The noise `[B, 3, H·f, W·f]` from which [`Upsampler::sample`] with DDIM, η = 0 and the same other options enlarges
    /// `low` `[B, 3, H, W]` to these images `[B, 3, H·f, W·f]` again; all in [−1, 1], f is the factor.
    ///
    /// `evaluations` of the network, at least 1, go into each step; the hook is called after each of them. An upsampler
    /// that cannot do this can keep the default, which says so.
    ///
    /// # Errors
    /// When options are out of range, shapes do not fit, the hook cancels, or this upsampler cannot invert.
    fn invert(
        &self,
        images: Tensor<4>,
        low: Tensor<4>,
        options: &SampleOptions,
        evaluations: usize,
        hook: StepHook<'_>,
    ) -> Result<Tensor<4>> {
        let _ = (images, low, options, evaluations, hook);
        Err(Error::Mismatch(format!("a {} cannot find the noise of an image", self.class_name())))
    }
    /// Like [`Upsampler::sample`], around the kept part of images of the size of the result.
    ///
    /// # Errors
    /// As [`Upsampler::sample`], when the kept images do not fit the batch, or when this upsampler cannot inpaint, which is
    /// the default.
    fn inpaint(
        &self,
        images: Tensor<4>,
        inpainting: &Inpainting,
        options: &SampleOptions,
        noise: &mut dyn NoiseSource,
        hook: StepHook<'_>,
    ) -> Result<Tensor<4>> {
        let _ = (images, inpainting, options, noise, hook);
        Err(Error::Mismatch(format!("a {} cannot inpaint", self.class_name())))
    }
    /// Side of the images it was trained to read, in pixels.
    fn input_size(&self) -> usize;
    /// How many times larger the result is along each side.
    fn factor(&self) -> usize;
    /// The sampling defaults of this model, every field that applies filled in.
    fn defaults(&self) -> SampleOptions;
    /// Checks options without sampling.
    ///
    /// # Errors
    /// Names the field that is out of range.
    fn validate(&self, options: &SampleOptions) -> Result<()>;
}

/// Maps a hook's answer to a result.
///
/// # Errors
/// [`Error::Cancelled`] when the hook broke off.
pub fn check_flow(flow: Flow) -> Result<()> {
    match flow {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Cancelled),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::BetaSchedule;

    #[test]
    fn plans_take_the_request_before_the_model() {
        let schedule = NoiseSchedule::new(BetaSchedule::Cosine, 1000).unwrap();
        let steps = |options: SampleOptions, defaults: SampleOptions| {
            options.plan(&schedule, &defaults).map(|plan| plan.timesteps())
        };
        let none = SampleOptions::default;
        let of = |steps, spacing| SampleOptions { steps, spacing, ..none() };
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
    fn guidance_acts_within_its_interval() {
        let options =
            SampleOptions { guidance_interval: Some(GuidanceInterval { low: 0.2, high: 0.5 }), ..Default::default() };
        assert!(options.guides_at(300, 1000) && !options.guides_at(100, 1000) && !options.guides_at(501, 1000));
        assert!(SampleOptions::default().guides_at(999, 1000));
        let bad = SampleOptions { guidance_interval: Some(GuidanceInterval { low: 0.9, high: 0.1 }), ..options };
        assert!(bad.validate(1000).unwrap_err().to_string().contains("guidance_interval"));
    }
}
