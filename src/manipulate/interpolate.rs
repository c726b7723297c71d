//! From one image to another (DALL·E 2, section 3.2).

use burn::prelude::*;
use dalle2_core::metrics::cosine_similarity;
use dalle2_core::{ConfigError, Error, Result, slerp};

use super::inversion::{Seeds, deterministic};
use super::{Controls, InvertOptions, Source};
use crate::{GenerateRequest, Generation, Pipeline, Stage};

/// Cosine above which two embeddings are one.
const IDENTICAL: f32 = 1.0 - 1e-6;
/// Most frames.
const MAX_STEPS: usize = 10_000;

/// The noise on the way from one end to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoisePath {
    /// From the noise of one image to that of the other, along the sphere; the ends are the two reconstructions. An end that
    /// is not an image has the noise of the seed.
    Inverted,
    /// The noise of the seed in every frame.
    Fixed,
}

/// How an interpolation is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interpolate {
    /// Frames, both ends included; at least 2.
    pub steps: usize,
    /// The noise on the way.
    pub noise: NoisePath,
    /// How the noise of images is found; upsamplers are not inverted.
    pub invert: InvertOptions,
}

impl Default for Interpolate {
    fn default() -> Self {
        Self { steps: 8, noise: NoisePath::Inverted, invert: InvertOptions::default() }
    }
}

impl Pipeline {
    /// Draws the way from one image, caption or embedding to another: embeddings go along the sphere, and so does the noise.
    ///
    /// The result has a frame per step and its embedding. The request gives the seed, the steps of the stages, and the caption
    /// that the decoder reads in every frame, by default none; its number of images does not matter. Without a guidance scale
    /// of its own there is no guidance.
    ///
    /// # Errors
    /// When both ends have the same or opposite embeddings, an image is empty, the pipeline has no image encoder for it, or an
    /// option is out of range.
    pub fn interpolate(
        &self,
        from: impl Into<Source>,
        to: impl Into<Source>,
        options: &Interpolate,
        request: impl Into<GenerateRequest>,
    ) -> Result<Generation> {
        self.interpolate_with([from.into(), to.into()], options, request, &mut Controls::new())
    }

    /// Like [`Pipeline::interpolate`], with controls.
    ///
    /// # Errors
    /// As [`Pipeline::interpolate`], and when the hook stops it.
    pub fn interpolate_with(
        &self,
        ends: [Source; 2],
        options: &Interpolate,
        request: impl Into<GenerateRequest>,
        controls: &mut Controls<'_>,
    ) -> Result<Generation> {
        if !(2..=MAX_STEPS).contains(&options.steps) {
            return Err(ConfigError::new("steps", options.steps, format!("must be between 2 and {MAX_STEPS}")).into());
        }
        let request = request.into().without_start()?.num_images(1).settled();
        let frames = |embeddings| deterministic(request.clone()).num_images(options.steps).embeddings(embeddings);
        self.validate(&frames(Tensor::zeros([1, self.decoder.embed_dim()], &self.device)))?;
        let [a, b] = &ends;
        let (a, b) = (self.embed_source(a, &request, controls)?, self.embed_source(b, &request, controls)?);
        let cosine = cosine_similarity(a.clone(), b.clone())?.into_scalar::<f32>();
        if cosine > IDENTICAL {
            return Err(Error::Input(
                "both ends of an interpolation have the same embedding: there is nothing between".into(),
            ));
        }
        let embeddings = path(a, b, options.steps)?;
        let noise = match options.noise {
            // Nothing is drawn from it.
            _ if request.stop_after == Some(Stage::Prior) => Tensor::zeros([1; 4], &self.device),
            NoisePath::Fixed => self.seeded_noise(&request, controls)?,
            NoisePath::Inverted => {
                let mut noise = Vec::with_capacity(2);
                for end in &ends {
                    noise.push(match end {
                        Source::Image(image) => self.halves(image, &options.invert, &request, controls)?.1,
                        Source::Caption(_) | Source::Embedding(_) => self.seeded_noise(&request, controls)?,
                    });
                }
                path(noise[0].clone(), noise[1].clone(), options.steps)?
            }
        };
        self.draw_from(frames(embeddings), (&noise, &[]), Seeds::Shared, controls)
    }

    /// The noise `[1, 3, S, S]` that the decoder would start from for the request's seed.
    pub(super) fn seeded_noise(&self, request: &GenerateRequest, controls: &mut Controls<'_>) -> Result<Tensor<4>> {
        let size = self.decoder.image_size();
        let seed = request.seed.unwrap_or_default();
        let mut source = (controls.noise)(Stage::Decoder, &[seed]);
        dalle2_core::diffusion::draw(&mut *source, [1, 3, size, size], &self.device)
    }
}

/// `steps` points from `a` to `b` along the sphere; the ends are the vectors themselves, bit for bit.
///
/// # Shapes
/// `[1, …]` and `[1, …]` -> `[steps, …]`
pub(super) fn path<const D: usize>(a: Tensor<D>, b: Tensor<D>, steps: usize) -> Result<Tensor<D>> {
    let between = (1..steps - 1).map(|i| slerp(a.clone(), b.clone(), i as f64 / (steps - 1) as f64));
    let mut points = vec![a.clone()];
    points.extend(between.collect::<Result<Vec<_>>>()?);
    points.push(b.clone());
    Ok(Tensor::cat(points, 0))
}
