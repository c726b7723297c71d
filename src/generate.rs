//! From a caption to images.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use burn::prelude::*;
use dalle2_core::diffusion::{NoiseSource, SeededNoise};
use dalle2_core::image::{RgbImage, from_tensor, to_tensor};
use dalle2_core::{Result, StepEvent, TextCondition};

use crate::{EmbeddingSource, Event, GenerateRequest, Pipeline, Stage};

/// What a request gives.
#[derive(Debug, Clone)]
pub struct Generation {
    /// The images at full size, in order.
    pub images: Vec<RgbImage>,
    /// The image embeddings `[num_images, D]` that the decoder drew, in CLIP's space.
    pub embeddings: Tensor<2>,
    /// The seed of the first image; image i has `seed + i`.
    pub seed: u64,
    /// Seconds spent in each stage.
    pub times: Vec<StageTime>,
}

/// Time spent in a stage.
#[derive(Debug, Clone, Copy)]
pub struct StageTime {
    /// The stage.
    pub stage: Stage,
    /// Wall-clock time, over all batches.
    pub duration: Duration,
}

/// Gives each stage the noise of a batch of images, which have these seeds.
type NoiseOf<'a> = &'a mut dyn FnMut(Stage, &[u64]) -> Box<dyn NoiseSource>;

type Hook<'a> = &'a mut dyn FnMut(Event<'_>) -> ControlFlow<()>;

impl Pipeline {
    /// Draws images for a caption or a request.
    ///
    /// # Errors
    /// When the caption is empty or too long, or an option is out of range.
    pub fn generate(&self, request: impl Into<GenerateRequest>) -> Result<Generation> {
        self.generate_with(request, |_| ControlFlow::Continue(()))
    }

    /// Like [`Pipeline::generate`]; `hook` is called after every step, and stops the generation by
    /// [`ControlFlow::Break`].
    ///
    /// # Errors
    /// As [`Pipeline::generate`], and [`Error::Cancelled`](crate::Error::Cancelled) when the hook stopped it.
    pub fn generate_with(
        &self,
        request: impl Into<GenerateRequest>,
        hook: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Generation> {
        self.generate_from(request, |stage, seeds| Box::new(SeededNoise::new(seeds, stage.stream())), hook)
    }

    /// Like [`Pipeline::generate_with`], with noise of your own: for each batch of images, `noise` gives each stage its
    /// source, from which the stage takes one array per use.
    ///
    /// # Errors
    /// As [`Pipeline::generate_with`], and when a source has no noise of the shape that is asked for.
    pub fn generate_from(
        &self,
        request: impl Into<GenerateRequest>,
        mut noise: impl FnMut(Stage, &[u64]) -> Box<dyn NoiseSource>,
        mut hook: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let request = request.into();
        self.validate(&request)?;
        let seed = request.seed.unwrap_or_else(random_seed);
        let mut run = Run { pipeline: self, request: &request, given: None, times: Vec::new() };
        let both = run.timed(Stage::TextEncoder, || self.text_encoder.encode(&["", request.caption.as_str()]))?;
        let text = (both.rows(1, 1), both.rows(0, 1));
        run.given = run.given_embedding()?;
        let mut images = Vec::with_capacity(request.num_images);
        let mut embeddings = Vec::new();
        for first in (0..request.num_images).step_by(request.batch_size) {
            let n = request.batch_size.min(request.num_images - first);
            let seeds: Vec<u64> = (first..first + n).map(|i| seed.wrapping_add(i as u64)).collect();
            let (batch, embedding) = run.batch(&text, first, &seeds, &mut noise, &mut hook)?;
            images.extend(from_tensor(batch)?);
            embeddings.push(embedding);
        }
        Ok(Generation { images, embeddings: Tensor::cat(embeddings, 0), seed, times: run.times })
    }

    /// Checks a request against the parts without drawing anything.
    ///
    /// # Errors
    /// Names the stage and the field that is out of range.
    pub fn validate(&self, request: &GenerateRequest) -> Result<()> {
        request.validate()?;
        let within = |result: Result<()>, stage: &str| match result {
            Err(crate::Error::Config(e)) => Err(e.within(stage).into()),
            other => other,
        };
        match (&request.source, &self.prior, &self.image_encoder) {
            (EmbeddingSource::Prior, Some(prior), _) => within(prior.validate(&request.prior), "prior")?,
            (EmbeddingSource::Prior, None, _) => {
                let message = "this pipeline has no prior, which would draw an image embedding for a caption: ask for \
                               variations of an image (GenerateRequest::variation_of) or give an embedding";
                return Err(crate::Error::Mismatch(message.into()));
            }
            (EmbeddingSource::Image(_), _, None) => {
                let message = "this pipeline has no image encoder, which variations of an image need";
                return Err(crate::Error::Mismatch(message.into()));
            }
            (EmbeddingSource::Image(image), _, Some(_)) if image.width() == 0 || image.height() == 0 => {
                return Err(crate::Error::Input("an image without pixels has no variations".into()));
            }
            (EmbeddingSource::Embedding(values), ..) if values.len() != self.decoder.embed_dim() => {
                let expected = format!("needs the {} values that the decoder reads", self.decoder.embed_dim());
                return Err(crate::ConfigError::new("embedding", format!("[{} values]", values.len()), expected).into());
            }
            _ => {}
        }
        within(self.decoder.validate(&request.decoder), "decoder")?;
        self.upsamplers.iter().try_for_each(|u| within(u.validate(&request.upsampler), "upsampler"))
    }
}

impl Stage {
    /// Which stream of an image's seed the stage draws from.
    fn stream(self) -> u64 {
        match self {
            Self::TextEncoder | Self::ImageEncoder => 0,
            Self::Prior => 1,
            Self::Decoder => 2,
            Self::Upsampler(index) => 3 + index as u64,
        }
    }
}

struct Run<'a> {
    pipeline: &'a Pipeline,
    request: &'a GenerateRequest,
    /// The embedding `[1, D]` that takes the place of the prior's.
    given: Option<Tensor<2>>,
    times: Vec<StageTime>,
}

impl Run<'_> {
    /// The embedding `[1, D]` that takes the place of the prior's, if the request has one.
    fn given_embedding(&mut self) -> Result<Option<Tensor<2>>> {
        let (pipeline, request) = (self.pipeline, self.request);
        match (&request.source, &pipeline.image_encoder) {
            (EmbeddingSource::Image(image), Some(encoder)) => self
                .timed(Stage::ImageEncoder, || {
                    encoder.encode(to_tensor(std::slice::from_ref(image), &pipeline.device)?)
                })
                .map(Some),
            (EmbeddingSource::Embedding(values), _) => {
                let data = TensorData::new(values.clone(), [1, values.len()]);
                Ok(Some(Tensor::from_data(data, &pipeline.device)))
            }
            _ => Ok(None),
        }
    }

    /// Draws the images with these seeds: `[n, 3, H, W]`, and their embeddings.
    fn batch(
        &mut self,
        (text, null): &(TextCondition, TextCondition),
        first: usize,
        seeds: &[u64],
        noise_of: NoiseOf<'_>,
        hook: Hook<'_>,
    ) -> Result<(Tensor<4>, Tensor<2>)> {
        let (pipeline, request) = (self.pipeline, self.request);
        let text = text.repeat_interleave(seeds.len());

        let stage = Stage::Prior;
        let embedding = match (self.given.clone(), &pipeline.prior) {
            (None, Some(prior)) => {
                let mut noise = noise_of(stage, seeds);
                self.timed(stage, || {
                    let mut on_step = |step: StepEvent<'_>| hook(Event::new(stage, first, step));
                    prior.sample(&text, null, &request.prior, &mut *noise, &mut on_step)
                })?
            }
            (Some(given), _) => given.repeat_dim(0, seeds.len()),
            (None, None) => return Err(crate::Error::Mismatch("this pipeline has no prior".into())),
        };

        let stage = Stage::Decoder;
        let mut noise = noise_of(stage, seeds);
        let mut images = self.timed(stage, || {
            let mut on_step = |step: StepEvent<'_>| hook(Event::new(stage, first, step));
            let embedding = embedding.clone();
            pipeline.decoder.sample(embedding, &text, null, &request.decoder, &mut *noise, &mut on_step)
        })?;

        let upsamplers = request.max_upsamplers.unwrap_or(usize::MAX);
        for (index, upsampler) in pipeline.upsamplers.iter().enumerate().take(upsamplers) {
            let stage = Stage::Upsampler(index);
            let mut noise = noise_of(stage, seeds);
            images = self.timed(stage, || {
                let mut on_step = |step: StepEvent<'_>| hook(Event::new(stage, first, step));
                upsampler.sample(images, &request.upsampler, &mut *noise, &mut on_step)
            })?;
        }
        Ok((images, embedding))
    }

    /// Runs a stage, waits for the device and adds the time to the stage's.
    fn timed<T>(&mut self, stage: Stage, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let result = work()?;
        self.pipeline.device.sync().map_err(|e| crate::Error::Device(format!("{e:?}")))?;
        let duration = start.elapsed();
        match self.times.iter_mut().find(|time| time.stage == stage) {
            Some(time) => time.duration += duration,
            None => self.times.push(StageTime { stage, duration }),
        }
        Ok(result)
    }
}

fn random_seed() -> u64 {
    u64::from(rand::random::<u32>())
}
