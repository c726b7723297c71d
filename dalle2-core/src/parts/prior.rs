//! The trait of priors.

use std::fmt::Debug;

use burn::prelude::*;

use super::{Component, PriorOptions};
use crate::diffusion::NoiseSource;
use crate::{Captions, Result, StepHook};

/// P(z_i | y): samples CLIP image embeddings for captions (DALL·E 2, section 2.2).
pub trait Prior: Component + Debug + Send + Sync {
    /// Samples one embedding per caption, in CLIP's space. Row b takes its noise from item b of `noise`.
    ///
    /// # Shapes
    /// `captions.text` of batch B, `captions.null` of batch 1 -> `[B, D]`
    ///
    /// # Errors
    /// If an option is out of range, a width differs from the prior's, or the hook returns an error.
    fn sample(
        &self,
        captions: Captions<'_>,
        options: &PriorOptions,
        noise: &mut dyn NoiseSource,
        hook: StepHook<'_>,
    ) -> Result<Tensor<2>>;
    /// Width D of the embeddings.
    fn embed_dim(&self) -> usize;
    /// Width W of the token encodings.
    fn token_width(&self) -> usize;
    /// Number S of token positions.
    fn context_length(&self) -> usize;
    /// The model's sampling defaults, with every supported field set. A prior without options can keep the default.
    fn defaults(&self) -> PriorOptions {
        PriorOptions::default()
    }
    /// Checks options without sampling, and returns the number of steps that [`Prior::sample`] reports to its hook. The
    /// default accepts any options and reports no steps.
    ///
    /// # Errors
    /// If a field is out of range, with its name.
    fn num_steps(&self, options: &PriorOptions) -> Result<usize> {
        let _ = options;
        Ok(0)
    }
}
