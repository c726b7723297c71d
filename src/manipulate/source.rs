//! The sources of image embeddings.

use burn::prelude::*;
use dalle2_core::image::RgbImage;
use dalle2_core::{Error, Result};

use crate::run::Inputs;
use crate::{Controls, GenerateRequest, Pipeline, Stage};

/// The source of an image embedding.
#[allow(clippy::large_enum_variant, reason = "one value lives per request")]
#[derive(Debug, Clone)]
pub enum Source {
    /// CLIP's embedding of the central square.
    Image(RgbImage),
    /// An embedding that the prior samples for the caption, with the request's seed and options.
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

/// The request for the embedding of a caption.
pub(super) fn prior_request(caption: &str, request: &GenerateRequest) -> GenerateRequest {
    GenerateRequest {
        negative_caption: request.negative_caption.clone(),
        prior: request.prior.clone(),
        seed: request.seed,
        ..GenerateRequest::new(caption).stop_after(Stage::Prior)
    }
}

impl Pipeline {
    /// The steps of embedding sources.
    pub(super) fn embed_steps<'s>(
        &self,
        sources: impl IntoIterator<Item = &'s Source>,
        request: &GenerateRequest,
    ) -> Result<usize> {
        let mut steps = 0;
        for source in sources {
            if let Source::Caption(caption) = source {
                steps += self.check(prior_request(caption, request).without_unread_negative(self), None)?.steps();
            }
        }
        Ok(steps)
    }

    /// The embedding `[1, D]` of a source.
    pub(super) fn embed_source(
        &self,
        source: &Source,
        request: &GenerateRequest,
        controls: &mut Controls<'_>,
    ) -> Result<Tensor<2>> {
        match source {
            Source::Image(image) => self.embed_image(image),
            Source::Caption(caption) => {
                let checked = self.check(prior_request(caption, request).without_unread_negative(self), None)?;
                let generation = self.execute(&checked, Inputs::default(), controls)?;
                generation.embeddings.ok_or_else(|| Error::Input("the prior returned no embedding".into()))
            }
            Source::Embedding(embedding) => match embedding.dims() {
                [1, width] if width == self.decoder.embed_dim() => Ok(embedding.clone()),
                shape => {
                    let expected = [1, self.decoder.embed_dim()];
                    Err(Error::Input(format!("an embedding of shape {shape:?}: expected {expected:?}")))
                }
            },
        }
    }
}

impl GenerateRequest {
    /// Drops a negative caption that the prior does not read for lack of guidance: the decoder reads it later.
    fn without_unread_negative(mut self, pipeline: &Pipeline) -> Self {
        let scale = self.prior.guidance.or(pipeline.prior.as_ref().and_then(|prior| prior.defaults().guidance));
        if scale == Some(1.0) {
            self.negative_caption.clear();
        }
        self
    }
}
