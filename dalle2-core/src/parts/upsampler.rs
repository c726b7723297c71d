//! The trait of upsamplers.

use std::fmt::Debug;

use burn::prelude::*;

use super::{Component, DdimInversion, UpsamplerOptions};
use crate::diffusion::{NoiseSource, Resampling};
use crate::{Error, Inpainting, Result, StepHook};

/// P(x_high | x_low): samples larger images (DALL·E 2, section 2.1).
pub trait Upsampler: Component + Debug + Send + Sync {
    /// Enlarges images in [−1, 1] by the factor f = [`Upsampler::factor`]. With `keep`, the unedited pixels of the result are
    /// equal to the given images at this size; an upsampler that cannot inpaint returns an error then.
    ///
    /// # Shapes
    /// `low: [B, 3, H, W]` -> `[B, 3, H·f, W·f]`
    ///
    /// # Errors
    /// If an option is out of range, a side is not a multiple of the network's stride, or the hook returns an error.
    fn sample(
        &self,
        low: &Tensor<4>,
        keep: Option<&Inpainting>,
        options: &UpsamplerOptions,
        noise: &mut dyn NoiseSource,
        hook: StepHook<'_>,
    ) -> Result<Tensor<4>>;
    /// Computes the noise from which [`Upsampler::sample`] with DDIM, η = 0 and the same other options reproduces images
    /// in [−1, 1] from `low`. The hook is called after each evaluation of the network. The default returns an error.
    ///
    /// # Shapes
    /// `images: [B, 3, H·f, W·f]`, `low: [B, 3, H, W]` -> `[B, 3, H·f, W·f]`
    ///
    /// # Errors
    /// If an option is out of range, a shape is wrong, the hook returns an error, or the upsampler cannot invert.
    fn invert(
        &self,
        images: &Tensor<4>,
        low: &Tensor<4>,
        options: &DdimInversion<UpsamplerOptions>,
        hook: StepHook<'_>,
    ) -> Result<Tensor<4>> {
        let _ = (images, low, options, hook);
        Err(Error::Mismatch(format!("a {} cannot invert images to noise", self.class_name())))
    }
    /// Side in pixels of the images that the upsampler was trained to read.
    fn input_size(&self) -> usize;
    /// Factor by which each side grows.
    fn factor(&self) -> usize;
    /// The model's sampling defaults, with every supported field set.
    fn defaults(&self) -> UpsamplerOptions;
    /// Checks options without sampling, and returns the number of steps that [`Upsampler::sample`] reports to its hook;
    /// with `resampling`, when it inpaints.
    ///
    /// # Errors
    /// If a field is out of range, with its name.
    fn num_steps(&self, options: &UpsamplerOptions, resampling: Option<Resampling>) -> Result<usize>;
}
