//! What an embedding can come from.

use burn::prelude::*;
use dalle2_core::image::RgbImage;
use dalle2_core::{Error, Result};

use super::Controls;
use crate::{GenerateRequest, Pipeline, Stage};

/// What an image embedding comes from.
#[allow(clippy::large_enum_variant, reason = "one value lives per request")]
#[derive(Debug, Clone)]
pub enum Source {
    /// CLIP's embedding of the largest square in the middle.
    Image(RgbImage),
    /// The prior draws an embedding for the caption, with the request's seed and options.
    Caption(String),
    /// An embedding `[1, D]` in CLIP's space.
    Embedding(Tensor<2>),
}

impl From<RgbImage> for Source {
    fn from(image: RgbImage) -> Self {
        Self::Image(image)
    }
}

impl From<&RgbImage> for Source {
    fn from(image: &RgbImage) -> Self {
        Self::Image(image.clone())
    }
}

impl From<&str> for Source {
    fn from(caption: &str) -> Self {
        Self::Caption(caption.to_owned())
    }
}

impl From<String> for Source {
    fn from(caption: String) -> Self {
        Self::Caption(caption)
    }
}

impl From<Tensor<2>> for Source {
    fn from(embedding: Tensor<2>) -> Self {
        Self::Embedding(embedding)
    }
}

impl Pipeline {
    /// The embedding `[1, D]` of a source. `request` gives the prior's seed and options.
    pub(super) fn embed_source(
        &self,
        source: &Source,
        request: &GenerateRequest,
        controls: &mut Controls<'_>,
    ) -> Result<Tensor<2>> {
        match source {
            Source::Image(image) => self.embed(image),
            Source::Caption(caption) => {
                let prior = GenerateRequest {
                    negative_caption: request.negative_caption.clone(),
                    prior: request.prior.clone(),
                    seed: request.seed,
                    ..GenerateRequest::new(caption).stop_after(Stage::Prior)
                };
                let drawn = self.generate_from(prior, &mut *controls.noise, &mut *controls.hook)?;
                drawn.embeddings.ok_or_else(|| Error::Input("the prior gave no embedding".into()))
            }
            Source::Embedding(embedding) => match embedding.dims() {
                [1, width] if width == self.decoder.embed_dim() => Ok(embedding.clone()),
                found => {
                    let expected = [1, self.decoder.embed_dim()];
                    Err(Error::Input(format!("an embedding of shape {found:?}: expected {expected:?}")))
                }
            },
        }
    }
}
