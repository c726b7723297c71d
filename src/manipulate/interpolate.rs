//! Interpolation between two images (DALL·E 2, section 3.2).

use burn::prelude::*;
use dalle2_core::metrics::cosine_similarity;
use dalle2_core::{ConfigError, Error, Result, slerp};

use super::inversion::{DEFAULT_EVALUATIONS, deterministic};
use super::{Operation, Source};
use crate::run::Inputs;
use crate::{Controls, GenerateRequest, Generation, Pipeline, Stage};

/// Cosine above which two embeddings count as identical.
const IDENTICAL: f32 = 1.0 - 1e-6;
/// Maximum number of frames.
const MAX_FRAMES: usize = 10_000;

/// The initial noise of the frames of an interpolation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoisePath {
    /// Between the noise of both images, along the sphere, so that the first and the last frame are the
    /// two reconstructions. An end that is not an image has the noise of the seed.
    Inverted,
    /// The noise of the seed in every frame.
    Fixed,
}

/// Interpolation between two sources.
#[derive(Debug, Clone)]
pub struct Interpolate {
    ends: [Source; 2],
    frames: usize,
    noise: NoisePath,
    evaluations: usize,
}

impl Interpolate {
    pub(super) fn new(from: Source, to: Source) -> Self {
        Self { ends: [from, to], frames: 8, noise: NoisePath::Inverted, evaluations: DEFAULT_EVALUATIONS }
    }
}

impl Operation<'_, Interpolate> {
    /// Sets the number of frames, both ends included; at least 2, 8 by default.
    pub fn frames(mut self, n: usize) -> Self {
        self.kind.frames = n;
        self
    }

    /// Sets the initial noise of the frames, [`NoisePath::Inverted`] by default.
    pub fn noise_path(mut self, noise: NoisePath) -> Self {
        self.kind.noise = noise;
        self
    }

    /// Sets the evaluations per step of the inversion.
    pub fn evaluations(mut self, n: usize) -> Self {
        self.kind.evaluations = n;
        self
    }

    /// Generates the frames.
    ///
    /// # Errors
    /// If both ends have the same or opposite embeddings, an image is empty, the pipeline has no image encoder for it, an
    /// option is out of range, or the hook returns an error.
    pub fn run(self) -> Result<Generation> {
        let Self { pipeline, request, mut controls, kind } = self;
        if !(2..=MAX_FRAMES).contains(&kind.frames) {
            return Err(ConfigError::new("frames", kind.frames, format!("must be between 2 and {MAX_FRAMES}")).into());
        }
        let request = request.without_start()?.num_images(1).with_seed();
        let checked = pipeline.check(deterministic(request.clone()).frames(kind.frames), None)?;
        controls.reserve(checked.steps() + pipeline.embed_steps(&kind.ends, &request)?);
        if kind.noise == NoisePath::Inverted {
            for _ in kind.ends.iter().filter(|end| matches!(end, Source::Image(_))) {
                pipeline.reserve_inversion(kind.evaluations, &request, &mut controls)?;
            }
        }
        let [from, to] = &kind.ends;
        let from = pipeline.embed_source(from, &request, &mut controls)?;
        let to = pipeline.embed_source(to, &request, &mut controls)?;
        if cosine_similarity(from.clone(), to.clone())?.into_scalar::<f32>() > IDENTICAL {
            let message = "both ends of an interpolation have the same embedding: there is nothing between";
            return Err(Error::Input(message.into()));
        }
        let embeddings = path(from, to, kind.frames)?;
        let x_t = pipeline.frame_noise(&kind, &request, &mut controls)?;
        let inputs = Inputs { x_t: x_t.as_ref(), ..Default::default() };
        pipeline.execute(&checked.with_embeddings(embeddings), inputs, &mut controls)
    }
}

impl Pipeline {
    /// The initial noise of the frames; none if the request stops before it is needed.
    fn frame_noise(
        &self,
        kind: &Interpolate,
        request: &GenerateRequest,
        controls: &mut Controls<'_>,
    ) -> Result<Option<Tensor<4>>> {
        if request.stop_after == Some(Stage::Prior) {
            return Ok(None);
        }
        if kind.noise == NoisePath::Fixed {
            return self.seed_noise(request, controls).map(Some);
        }
        let mut noise = Vec::with_capacity(2);
        for end in &kind.ends {
            noise.push(match end {
                Source::Image(image) => self.find_noise(image, kind.evaluations, request, controls)?,
                Source::Caption(_) | Source::Embedding(_) => self.seed_noise(request, controls)?,
            });
        }
        path(noise.remove(0), noise.remove(0), kind.frames).map(Some)
    }

    /// The noise `[1, 3, S, S]` from which the decoder starts for the request's first seed.
    pub(super) fn seed_noise(&self, request: &GenerateRequest, controls: &mut Controls<'_>) -> Result<Tensor<4>> {
        let size = self.decoder.image_size();
        let mut source = controls.source(Stage::Decoder, &[request.first_seed()]);
        dalle2_core::diffusion::draw(&mut *source, [1, 3, size, size], &self.device)
    }
}

/// `n` points from `from` to `to` along the sphere; the ends are the vectors themselves, bit for bit.
///
/// # Shapes
/// `[1, …]` and `[1, …]` -> `[n, …]`
fn path<const D: usize>(from: Tensor<D>, to: Tensor<D>, n: usize) -> Result<Tensor<D>> {
    let mut points = vec![from.clone()];
    for i in 1..n - 1 {
        points.push(slerp(from.clone(), to.clone(), i as f64 / (n - 1) as f64)?);
    }
    points.push(to);
    Ok(Tensor::cat(points, 0))
}
