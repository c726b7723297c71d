//! Images that share what CLIP sees in one (DALL·E 2, section 3.1).

use dalle2_core::image::RgbImage;
use dalle2_core::{ConfigError, Result};

use super::inversion::{Seeds, with_eta};
use super::{Controls, InvertOptions};
use crate::{GenerateRequest, Generation, Pipeline};

/// The noise that a variation starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartNoise {
    /// That of the image, as [`Pipeline::invert`] finds it: layout and details stay where η allows.
    Inverted,
    /// Drawn from the seed: only what CLIP sees in the image stays.
    Random,
}

/// How variations are made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Variations {
    /// Noisiness of DDIM, from 0 to 1: 0 reconstructs an image from its own noise, more departs further from it.
    pub eta: f64,
    /// The noise that they start from.
    pub start: StartNoise,
    /// How the noise of the image is found; upsamplers are not inverted.
    pub invert: InvertOptions,
}

impl Default for Variations {
    fn default() -> Self {
        Self { eta: 1.0, start: StartNoise::Inverted, invert: InvertOptions::default() }
    }
}

impl Pipeline {
    /// Draws images that share what CLIP sees in `image`.
    ///
    /// The request gives the number, the seed, the steps, and the caption that the decoder reads beside the embedding, by
    /// default none. Without a guidance scale of its own there is no guidance, or with random noise the model's own.
    ///
    /// # Errors
    /// When the pipeline has no image encoder, the image is empty, or an option is out of range.
    pub fn variations(
        &self,
        image: &RgbImage,
        options: &Variations,
        request: impl Into<GenerateRequest>,
    ) -> Result<Generation> {
        self.variations_with(image, options, request, &mut Controls::new())
    }

    /// Like [`Pipeline::variations`], with controls.
    ///
    /// # Errors
    /// As [`Pipeline::variations`], and when the hook stops it.
    pub fn variations_with(
        &self,
        image: &RgbImage,
        options: &Variations,
        request: impl Into<GenerateRequest>,
        controls: &mut Controls<'_>,
    ) -> Result<Generation> {
        if !(0.0..=1.0).contains(&options.eta) {
            return Err(ConfigError::new("eta", options.eta, "must be between 0 and 1").into());
        }
        let request = request.into().without_start()?.settled();
        let embedding = self.embed(image)?;
        let mut drawn = with_eta(request.clone(), options.eta).embeddings(embedding);
        if options.start == StartNoise::Random {
            // There is no way back that guidance could make inexact.
            drawn.decoder.guidance = request.decoder.guidance;
        }
        self.validate(&drawn)?;
        match options.start {
            StartNoise::Random => self.generate_from(drawn, &mut *controls.noise, &mut *controls.hook),
            StartNoise::Inverted => {
                let (_, noise) = self.halves(image, &options.invert, &request, controls)?;
                self.draw_from(drawn, (&noise, &[]), Seeds::PerImage, controls)
            }
        }
    }
}
