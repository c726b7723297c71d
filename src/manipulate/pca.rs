//! Reconstructions from principal components of the embedding (DALL·E 2, section 4).

use burn::prelude::*;
use dalle2_core::image::RgbImage;
use dalle2_core::{EmbeddingPca, Error, Result};

use super::inversion::{DEFAULT_EVALUATIONS, deterministic};
use super::{Operation, StartNoise};
use crate::run::Inputs;
use crate::{Generation, Pipeline};

/// Reconstructions of an image from principal components of its embedding.
#[derive(Debug, Clone)]
pub struct PcaReconstructions {
    image: RgbImage,
    pca: EmbeddingPca,
    components: Vec<usize>,
    start: StartNoise,
    evaluations: usize,
}

impl PcaReconstructions {
    pub(super) fn new(image: RgbImage, pca: EmbeddingPca, components: Vec<usize>) -> Self {
        Self { image, pca, components, start: StartNoise::Random, evaluations: DEFAULT_EVALUATIONS }
    }

    fn validate(&self, pipeline: &Pipeline) -> Result<()> {
        let all = self.pca.num_components();
        if self.components.is_empty() {
            return Err(Error::Input(format!("no number of components: give numbers between 1 and {all}")));
        }
        if let Some(k) = self.components.iter().find(|k| !(1..=all).contains(*k)) {
            return Err(Error::Input(format!("{k} principal components of {all}: must be between 1 and {all}")));
        }
        let (width, expected) = (self.pca.embed_dim(), pipeline.decoder.embed_dim());
        if width != expected {
            let message = format!("principal components of embeddings of width {width}, the decoder reads {expected}");
            return Err(Error::Mismatch(message));
        }
        Ok(())
    }
}

impl Operation<'_, PcaReconstructions> {
    /// Sets the initial noise that all images share, [`StartNoise::Random`] by default, as in the paper. With the inverted
    /// noise there is no guidance unless the request sets a scale.
    pub fn start_noise(mut self, start: StartNoise) -> Self {
        self.kind.start = start;
        self
    }

    /// Sets the evaluations per step of the inversion.
    pub fn evaluations(mut self, n: usize) -> Self {
        self.kind.evaluations = n;
        self
    }

    /// Generates the reconstructions.
    ///
    /// # Errors
    /// If there is no number of components or one exceeds the PCA's, the widths differ, the pipeline has no image
    /// encoder, the image is empty, an option is out of range, or the hook returns an error.
    pub fn run(self) -> Result<Generation> {
        let Self { pipeline, request, mut controls, kind } = self;
        kind.validate(pipeline)?;
        let request = request.without_start()?.num_images(1).with_seed();
        let mut frames = deterministic(request.clone()).frames(kind.components.len());
        if kind.start == StartNoise::Random {
            // Nothing is inverted, which guidance could make inexact.
            frames.decoder.guidance = request.decoder.guidance;
        }
        let checked = pipeline.check(frames, None)?;
        controls.reserve(checked.steps());
        let x_t = match kind.start {
            StartNoise::Random => pipeline.seed_noise(&request, &mut controls)?,
            StartNoise::Inverted => {
                pipeline.reserve_inversion(kind.evaluations, &request, &mut controls)?;
                pipeline.find_noise(&kind.image, kind.evaluations, &request, &mut controls)?
            }
        };
        let coordinates = kind.pca.transform(pipeline.embed_image(&kind.image)?)?;
        let mut embeddings = Vec::with_capacity(kind.components.len());
        for k in &kind.components {
            embeddings.push(kind.pca.inverse(coordinates.clone().slice_dim(1, 0..*k))?);
        }
        let checked = checked.with_embeddings(Tensor::cat(embeddings, 0));
        pipeline.execute(&checked, Inputs { x_t: Some(&x_t), ..Default::default() }, &mut controls)
    }
}
