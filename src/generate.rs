//! From a caption to images.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use burn::prelude::*;
use dalle2_core::diffusion::{NoiseSource, SeededNoise};
use dalle2_core::image::{RgbImage, from_tensor};
use dalle2_core::{Result, StepEvent, TextCondition};

use crate::{Event, GenerateRequest, Pipeline, Stage};

/// What a request gives.
#[derive(Debug, Clone)]
pub struct Generation {
    /// The images at full size, in order.
    pub images: Vec<RgbImage>,
    /// The image embeddings `[num_images, D]` that the prior drew, in CLIP's space.
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
        let mut run = Run { pipeline: self, request: &request, times: Vec::new() };
        let text = run.timed(Stage::TextEncoder, || {
            let null = self.text_encoder.encode(&[""])?;
            Ok((self.text_encoder.encode(&[request.caption.as_str()])?, null))
        })?;
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
        within(self.prior.validate(&request.prior), "prior")?;
        within(self.decoder.validate(&request.decoder), "decoder")?;
        self.upsamplers.iter().try_for_each(|u| within(u.validate(&request.upsampler), "upsampler"))
    }
}

impl Stage {
    /// Which stream of an image's seed the stage draws from.
    fn stream(self) -> u64 {
        match self {
            Self::TextEncoder => 0,
            Self::Prior => 1,
            Self::Decoder => 2,
            Self::Upsampler(index) => 3 + index as u64,
        }
    }
}

struct Run<'a> {
    pipeline: &'a Pipeline,
    request: &'a GenerateRequest,
    times: Vec<StageTime>,
}

impl Run<'_> {
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
        let mut noise = noise_of(stage, seeds);
        let embedding = self.timed(stage, || {
            let mut on_step = |step: StepEvent<'_>| hook(Event::new(stage, first, step));
            pipeline.prior.sample(&text, null, &request.prior, &mut *noise, &mut on_step)
        })?;

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
