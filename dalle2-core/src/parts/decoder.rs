//! The trait of decoders.

use std::fmt::Debug;

use burn::prelude::*;

use super::{Component, DdimInversion, DiffusionOptions};
use crate::diffusion::{NoiseSource, Resampling};
use crate::{Captions, Error, Inpainting, Result, StepHook};

/// P(x | z_i, y): samples images for embeddings and captions (DALL·E 2, section 2.1).
pub trait Decoder: Component + Debug + Send + Sync {
    /// Samples images in [−1, 1] for image embeddings in CLIP's space. With `keep`, the unedited pixels of the result are
    /// equal to the given images at this size; a decoder that cannot inpaint returns an error then.
    ///
    /// # Shapes
    /// `embedding: [B, D]`, `captions.text` of batch B, `captions.null` of batch 1 -> `[B, 3, size, size]`
    ///
    /// # Errors
    /// If an option is out of range, a shape differs from the decoder's, or the hook returns an error.
    fn sample(
        &self,
        embedding: &Tensor<2>,
        captions: Captions<'_>,
        keep: Option<&Inpainting>,
        options: &DiffusionOptions,
        noise: &mut dyn NoiseSource,
        hook: StepHook<'_>,
    ) -> Result<Tensor<4>>;
    /// Computes the noise from which [`Decoder::sample`] with DDIM, η = 0 and the same other options reproduces images in
    /// [−1, 1]. The hook is called after each evaluation of the network. The default returns an error.
    ///
    /// # Shapes
    /// `images: [B, 3, size, size]`, `embedding: [B, D]` -> `[B, 3, size, size]`
    ///
    /// # Errors
    /// If an option is out of range, a shape differs from the decoder's, the hook returns an error, or the decoder
    /// cannot invert.
    fn invert(
        &self,
        images: &Tensor<4>,
        embedding: &Tensor<2>,
        captions: Captions<'_>,
        options: &DdimInversion<DiffusionOptions>,
        hook: StepHook<'_>,
    ) -> Result<Tensor<4>> {
        let _ = (images, embedding, captions, options, hook);
        Err(Error::Mismatch(format!("a {} cannot invert images to noise", self.class_name())))
    }
    /// Width D of the embeddings.
    fn embed_dim(&self) -> usize;
    /// Width W of the token encodings.
    fn token_width(&self) -> usize;
    /// Side of the images in pixels.
    fn image_size(&self) -> usize;
    /// The model's sampling defaults, with every supported field set.
    fn defaults(&self) -> DiffusionOptions;
    /// Checks options without sampling, and returns the number of steps that [`Decoder::sample`] reports to its hook;
    /// with `resampling`, when it inpaints.
    ///
    /// # Errors
    /// If a field is out of range, with its name.
    fn num_steps(&self, options: &DiffusionOptions, resampling: Option<Resampling>) -> Result<usize>;
}
