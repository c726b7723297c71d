//! What the leading principal components of an embedding say (DALL·E 2, section 4).

use burn::prelude::*;
use dalle2_core::image::RgbImage;
use dalle2_core::{EmbeddingPca, Error, Result};

use super::inversion::{Seeds, deterministic};
use super::{Controls, InvertOptions, StartNoise};
use crate::{GenerateRequest, Generation, Pipeline};

/// How reconstructions from principal components are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PcaReconstructions {
    /// The noise that all of them start from; the paper's is random.
    pub start: StartNoise,
    /// How the noise of the image is found; upsamplers are not inverted.
    pub invert: InvertOptions,
}

impl Default for PcaReconstructions {
    fn default() -> Self {
        Self { start: StartNoise::Random, invert: InvertOptions::default() }
    }
}

impl Pipeline {
    /// Draws what the first principal components of an image's embedding say, a picture for each number of `components`,
    /// all from the same noise. The coordinates along the other components are those of the mean embedding.
    ///
    /// The request gives the seed, the steps, and the caption that the decoder reads, by default none; its number of images
    /// does not matter. With inverted noise there is no guidance unless the request has a scale of its own, with random
    /// noise the model's.
    ///
    /// # Errors
    /// When no number is given or one is 0 or above the components of `pca`, the components are of embeddings of another
    /// width, the pipeline has no image encoder, the image is empty, or an option is out of range.
    pub fn pca_reconstructions(
        &self,
        image: &RgbImage,
        (pca, components): (&EmbeddingPca, &[usize]),
        options: &PcaReconstructions,
        request: impl Into<GenerateRequest>,
    ) -> Result<Generation> {
        self.pca_reconstructions_with(image, (pca, components), options, request, &mut Controls::new())
    }

    /// Like [`Pipeline::pca_reconstructions`], with controls.
    ///
    /// # Errors
    /// As [`Pipeline::pca_reconstructions`], and when the hook stops it.
    pub fn pca_reconstructions_with(
        &self,
        image: &RgbImage,
        (pca, components): (&EmbeddingPca, &[usize]),
        options: &PcaReconstructions,
        request: impl Into<GenerateRequest>,
        controls: &mut Controls<'_>,
    ) -> Result<Generation> {
        let all = pca.num_components();
        if components.is_empty() {
            return Err(Error::Input(format!("no number of components is given: give some between 1 and {all}")));
        }
        if let Some(k) = components.iter().find(|k| !(1..=all).contains(*k)) {
            return Err(Error::Input(format!("{k} principal components of {all}: must be between 1 and {all}")));
        }
        if pca.embed_dim() != self.decoder.embed_dim() {
            let (found, expected) = (pca.embed_dim(), self.decoder.embed_dim());
            let message = format!("principal components of embeddings of width {found}, the decoder reads {expected}");
            return Err(Error::Mismatch(message));
        }
        let request = request.into().without_start()?.num_images(1).settled();
        let frames = |embeddings| {
            let mut frames = deterministic(request.clone()).num_images(components.len()).embeddings(embeddings);
            if options.start == StartNoise::Random {
                // There is no way back that guidance could make inexact.
                frames.decoder.guidance = request.decoder.guidance;
            }
            frames
        };
        self.validate(&frames(Tensor::zeros([1, self.decoder.embed_dim()], &self.device)))?;
        let (embedding, noise) = match options.start {
            StartNoise::Random => (self.embed(image)?, self.seeded_noise(&request, controls)?),
            StartNoise::Inverted => self.halves(image, &options.invert, &request, controls)?,
        };
        let coordinates = pca.transform(embedding)?;
        let first = |k: &usize| pca.inverse(coordinates.clone().slice_dim(1, 0..*k));
        let embeddings = components.iter().map(first).collect::<Result<Vec<_>>>()?;
        self.draw_from(frames(Tensor::cat(embeddings, 0)), (&noise, &[]), Seeds::Shared, controls)
    }
}
