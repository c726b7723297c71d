//! Changing an image by what two captions differ in (DALL·E 2, section 3.3).

use burn::prelude::*;
use dalle2_core::image::RgbImage;
use dalle2_core::{ConfigError, Error, Result, slerp};

use super::inversion::{Seeds, deterministic};
use super::mix::read;
use super::{Controls, InvertOptions};
use crate::{GenerateRequest, Generation, Pipeline};

/// Below this share of the captions' length, their difference is noise.
const SAME: f64 = 1e-4;

/// How an image is changed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TextDiff {
    /// How far the embedding turns towards the difference, from 0, the image, to 1, the difference alone. The paper goes
    /// to values between 0.25 and 0.5.
    pub strength: f64,
    /// Images on the way: the last one has the full strength, the others even parts of it; at least 1.
    pub frames: usize,
    /// How the noise of the image is found; upsamplers are not inverted.
    pub invert: InvertOptions,
}

impl Default for TextDiff {
    fn default() -> Self {
        Self { strength: 0.4, frames: 1, invert: InvertOptions::default() }
    }
}

impl Pipeline {
    /// Changes an image from what one caption says to what another says, and keeps the rest.
    ///
    /// z_d is the direction from the embedding of caption `from` to that of caption `to`; `from` may be empty. The image's
    /// embedding turns towards z_d on the sphere, and the decoder draws the results from the image's own noise. The request
    /// gives the steps, and the caption that the decoder reads, by default none; its number of images does not matter. Without
    /// a guidance scale of its own there is no guidance.
    ///
    /// # Errors
    /// When the captions have the same embedding, their difference is opposite to the image, the strength leaves 0 to 1, or
    /// the image cannot be inverted.
    pub fn text_diff(
        &self,
        image: &RgbImage,
        (from, to): (&str, &str),
        options: &TextDiff,
        request: impl Into<GenerateRequest>,
    ) -> Result<Generation> {
        self.text_diff_with(image, (from, to), options, request, &mut Controls::new())
    }

    /// Like [`Pipeline::text_diff`], with controls.
    ///
    /// # Errors
    /// As [`Pipeline::text_diff`], and when the hook stops it.
    pub fn text_diff_with(
        &self,
        image: &RgbImage,
        (from, to): (&str, &str),
        options: &TextDiff,
        request: impl Into<GenerateRequest>,
        controls: &mut Controls<'_>,
    ) -> Result<Generation> {
        if !(0.0..=1.0).contains(&options.strength) {
            return Err(ConfigError::new("strength", options.strength, "must be between 0 and 1").into());
        }
        if options.frames == 0 {
            return Err(ConfigError::new("frames", 0, "must be at least 1").into());
        }
        let request = request.into().without_start()?.num_images(1).settled();
        self.check_caption(to)?;
        let direction = self.difference(from, to)?;
        let (embedding, noise) = self.halves(image, &options.invert, &request, controls)?;
        // A direction has no length: it gets the image's, so that only the angle changes.
        let length = embedding.clone().square().sum_dim(1).sqrt();
        let direction = direction * length;
        let frames = (1..=options.frames)
            .map(|i| slerp(embedding.clone(), direction.clone(), options.strength * i as f64 / options.frames as f64));
        let embeddings = Tensor::cat(frames.collect::<Result<Vec<_>>>()?, 0);
        let request = deterministic(request).num_images(options.frames).embeddings(embeddings);
        self.draw_from(request, (&noise, &[]), Seeds::Shared, controls)
    }

    /// The unit vector `[1, D]` from the embedding of one caption to that of another; both are normalised first.
    fn difference(&self, from: &str, to: &str) -> Result<Tensor<2>> {
        let unit = |caption: &str| -> Result<Vec<f64>> {
            let values = read(self.text_encoder.encode(&[caption])?.pooled)?;
            let norm = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
            Ok(values.into_iter().map(|value| f64::from(value) / norm).collect())
        };
        let difference: Vec<f64> = unit(to)?.into_iter().zip(unit(from)?).map(|(to, from)| to - from).collect();
        let norm = difference.iter().map(|value| value * value).sum::<f64>().sqrt();
        if norm.is_nan() || norm < SAME {
            let message = format!("{from:?} and {to:?} have the same embedding: there is nothing to change");
            return Err(Error::Input(message));
        }
        let values: Vec<f32> = difference.into_iter().map(|value| (value / norm) as f32).collect();
        let width = values.len();
        Ok(Tensor::from_data(TensorData::new(values, [1, width]), &self.device))
    }
}
