//! From a caption to images.

use std::time::{Duration, Instant};

use burn::prelude::*;
use dalle2_core::diffusion::{NoiseSource, SeededNoise};
use dalle2_core::image::{RgbImage, from_tensor, to_tensor};
use dalle2_core::{Captions, ConfigError, Error, Result, StepEvent, TextCondition};

use crate::manipulate::Kept;
use crate::request::Start;
use crate::{Event, GenerateRequest, Pipeline, Stage};

/// What a request gives.
#[derive(Debug, Clone)]
pub struct Generation {
    /// The images at full size, in order; none when the request stops after the prior.
    pub images: Vec<RgbImage>,
    /// The image embeddings `[num_images, D]` that the prior drew or the request began with, in CLIP's space; none when it
    /// began with images to enlarge.
    pub embeddings: Option<Tensor<2>>,
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

type Hook<'a> = &'a mut dyn FnMut(Event<'_>) -> Result<()>;

impl Pipeline {
    /// Draws images for a caption or a request.
    ///
    /// # Errors
    /// When the caption is empty or too long, or an option is out of range.
    pub fn generate(&self, request: impl Into<GenerateRequest>) -> Result<Generation> {
        self.generate_with(request, |_| Ok(()))
    }

    /// Like [`Pipeline::generate`]; `hook` is called after every step; its error stops the generation and is returned.
    ///
    /// # Errors
    /// As [`Pipeline::generate`], and the hook's own: [`Error::Cancelled`](crate::Error::Cancelled) cancels.
    pub fn generate_with(
        &self,
        request: impl Into<GenerateRequest>,
        hook: impl FnMut(Event<'_>) -> Result<()>,
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
        mut hook: impl FnMut(Event<'_>) -> Result<()>,
    ) -> Result<Generation> {
        self.draw(request.into().settled(), None, &mut noise, &mut hook)
    }

    /// Draws the images of a request that has a seed, around the kept part of an image if there is one.
    pub(crate) fn draw(
        &self,
        request: GenerateRequest,
        kept: Option<&Kept>,
        noise: NoiseOf<'_>,
        hook: Hook<'_>,
    ) -> Result<Generation> {
        self.validate(&request)?;
        self.check_caption(&request.caption)?;
        let seed = request.seed.unwrap_or_default();
        let upsamplers = self.upsamplers_of(&request)?;
        let mut run = Run { pipeline: self, request: &request, kept, upsamplers, times: Vec::new() };
        let text = run.texts()?;
        let given = run.given_embeddings()?;
        let mut images = Vec::with_capacity(request.num_images);
        let mut embeddings = Vec::new();
        for first in (0..request.num_images).step_by(request.batch_size) {
            let n = request.batch_size.min(request.num_images - first);
            let seeds: Vec<u64> = (first..first + n).map(|i| seed.wrapping_add(i as u64)).collect();
            let (batch, embedding) = run.batch((text.as_ref(), given.as_ref()), first, &seeds, noise, hook)?;
            if let Some(batch) = batch {
                let mut batch = from_tensor(batch)?;
                if let Some(kept) = kept {
                    batch.iter_mut().try_for_each(|image| kept.restore(image))?;
                }
                self.check_images(&batch, first)?;
                images.extend(batch);
            }
            embeddings.extend(embedding);
        }
        let embeddings = (!embeddings.is_empty()).then(|| Tensor::cat(embeddings, 0));
        Ok(Generation { images, embeddings, seed, times: run.times })
    }

    /// Checks a request against the parts without drawing anything.
    ///
    /// # Errors
    /// Names the stage and the field that is out of range.
    pub fn validate(&self, request: &GenerateRequest) -> Result<()> {
        request.validate()?;
        let within = |result: Result<()>, stage: &str| match result {
            Err(Error::Config(e)) => Err(e.within(stage).into()),
            other => other,
        };
        match (&request.start, &self.prior, &self.image_encoder) {
            (Start::Caption, Some(prior), _) => within(prior.num_steps(&request.prior).map(drop), "prior")?,
            (Start::Caption, None, _) => return Err(no_prior()),
            (Start::EmbeddingOf(_), _, None) => {
                let message = "this pipeline has no image encoder, which variations of an image need";
                return Err(Error::Mismatch(message.into()));
            }
            (Start::EmbeddingOf(image), _, Some(_)) if image.width() == 0 || image.height() == 0 => {
                return Err(Error::Input("an image without pixels has no variations".into()));
            }
            _ => {}
        }
        within(self.decoder.num_steps(&request.decoder, None).map(drop), "decoder")?;
        for (index, upsampler) in self.upsamplers.iter().enumerate() {
            within(upsampler.num_steps(request.options_of(index), None).map(drop), "upsampler")?;
        }
        if let Some((index, _)) = request.upsampler_overrides.iter().find(|(i, _)| *i >= self.upsamplers.len()) {
            let expected = format!("the pipeline has {} upsamplers, counted from 0", self.upsamplers.len());
            return Err(ConfigError::new("upsampler_options_of", index, expected).into());
        }
        if let Start::Embeddings(embeddings) = &request.start {
            let (given, expected) = (embeddings.dims()[1], self.decoder.embed_dim());
            if given != expected {
                return Err(Error::Input(format!("embeddings of width {given} for a decoder that reads {expected}")));
            }
        }
        self.upsamplers_of(request).map(drop)
    }

    /// How many upsamplers the request runs.
    pub(crate) fn upsamplers_of(&self, request: &GenerateRequest) -> Result<usize> {
        let all = self.upsamplers.len();
        let most = request.max_upsamplers.unwrap_or(all).min(all);
        let stop = match (request.stop_after, &request.start) {
            (None, _) => all,
            (Some(Stage::Prior | Stage::Decoder), Start::Caption | Start::Embeddings(_) | Start::EmbeddingOf(_)) => 0,
            (Some(Stage::Upsampler(index)), _) if index < all => index + 1,
            (Some(stage), _) => {
                let expected = "must be a stage of the pipeline that the request reaches";
                return Err(ConfigError::new("stop_after", stage, expected).into());
            }
        };
        let Some(size) = request.size else { return Ok(most.min(stop)) };
        let mut sizes = vec![self.decoder.image_size()];
        sizes.extend(self.upsamplers.iter().scan(sizes[0], |size, upsampler| {
            *size *= upsampler.factor();
            Some(*size)
        }));
        match sizes.iter().position(|side| *side == size) {
            Some(upsamplers) => Ok(most.min(stop).min(upsamplers)),
            None => Err(ConfigError::new("size", size, format!("the pipeline draws {sizes:?} pixels a side")).into()),
        }
    }
}

impl Stage {
    /// Which stream of an image's seed the stage draws from.
    pub(crate) fn stream(self) -> u64 {
        match self {
            Self::TextEncoder | Self::ImageEncoder | Self::Inversion => 0,
            Self::Prior => 1,
            Self::Decoder => 2,
            Self::Upsampler(index) => 3 + index as u64,
        }
    }
}

struct Run<'a> {
    pipeline: &'a Pipeline,
    request: &'a GenerateRequest,
    kept: Option<&'a Kept>,
    upsamplers: usize,
    times: Vec<StageTime>,
}

/// The encoded caption, and the one that guidance moves away from.
type Texts = (TextCondition, TextCondition);

impl Run<'_> {
    /// Encodes the captions, if a stage reads them.
    fn texts(&mut self) -> Result<Option<Texts>> {
        let (pipeline, request) = (self.pipeline, self.request);
        if matches!(request.start, Start::Images(_)) {
            return Ok(None);
        }
        let captions = [request.negative_caption.as_str(), request.caption.as_str()];
        let both = self.timed(Stage::TextEncoder, || pipeline.text_encoder.encode(&captions))?;
        Ok(Some((both.rows(1, 1), both.rows(0, 1))))
    }

    /// The embeddings `[1 or n, D]` that take the place of the prior's, if the request begins with some.
    fn given_embeddings(&mut self) -> Result<Option<Tensor<2>>> {
        let pipeline = self.pipeline;
        match (&self.request.start, &pipeline.image_encoder) {
            (Start::Embeddings(given), _) => Ok(Some(given.clone())),
            (Start::EmbeddingOf(image), Some(encoder)) => {
                let encode = || encoder.encode(to_tensor(std::slice::from_ref(image), &pipeline.device)?);
                self.timed(Stage::ImageEncoder, encode).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Draws the images with these seeds: `[n, 3, H, W]`, and their embeddings.
    fn batch(
        &mut self,
        (texts, given): (Option<&Texts>, Option<&Tensor<2>>),
        first: usize,
        seeds: &[u64],
        noise_of: NoiseOf<'_>,
        hook: Hook<'_>,
    ) -> Result<(Option<Tensor<4>>, Option<Tensor<2>>)> {
        let (pipeline, kept) = (self.pipeline, self.kept);
        let rows = first..first + seeds.len();
        let (mut images, embedding) = match (&self.request.start, texts) {
            (Start::Images(given), _) => {
                let given = if given.len() == 1 { vec![given[0].clone(); seeds.len()] } else { given[rows].to_vec() };
                (to_tensor(&given, &pipeline.device)?, None)
            }
            (_, None) => return Err(Error::Input("no caption was encoded for the prior and the decoder".into())),
            (_, Some((text, null))) => {
                let text = text.repeat_interleave(seeds.len());
                let embedding = match given {
                    Some(given) if given.dims()[0] == 1 => given.clone().repeat_dim(0, seeds.len()),
                    Some(given) => given.clone().slice_dim(0, rows),
                    None => self.prior((&text, null), first, seeds, noise_of, hook)?,
                };
                if self.request.stop_after == Some(Stage::Prior) {
                    return Ok((None, Some(embedding)));
                }
                (self.decoder(&embedding, (&text, null), (first, seeds), noise_of, hook)?, Some(embedding))
            }
        };
        for (index, upsampler) in pipeline.upsamplers.iter().enumerate().take(self.upsamplers) {
            let (stage, options) = (Stage::Upsampler(index), self.request.options_of(index));
            let mut noise = noise_of(stage, seeds);
            images = self.timed(stage, || {
                let mut on_step = |step: StepEvent<'_>| hook(Event::new(stage, first, step));
                let keep = kept.map(|kept| &kept.upsamplers);
                upsampler.sample(&images, keep, options, &mut *noise, &mut on_step)
            })?;
        }
        Ok((Some(images), embedding))
    }

    fn prior(
        &mut self,
        (text, null): (&TextCondition, &TextCondition),
        first: usize,
        seeds: &[u64],
        noise_of: NoiseOf<'_>,
        hook: Hook<'_>,
    ) -> Result<Tensor<2>> {
        let (pipeline, request, stage) = (self.pipeline, self.request, Stage::Prior);
        let Some(prior) = &pipeline.prior else { return Err(no_prior()) };
        let mut noise = noise_of(stage, seeds);
        self.timed(stage, || {
            let mut on_step = |step: StepEvent<'_>| hook(Event::new(stage, first, step));
            prior.sample(Captions { text, null }, &request.prior, &mut *noise, &mut on_step)
        })
    }

    fn decoder(
        &mut self,
        embedding: &Tensor<2>,
        (text, null): (&TextCondition, &TextCondition),
        (first, seeds): (usize, &[u64]),
        noise_of: NoiseOf<'_>,
        hook: Hook<'_>,
    ) -> Result<Tensor<4>> {
        let (pipeline, request, kept, stage) = (self.pipeline, self.request, self.kept, Stage::Decoder);
        let mut noise = noise_of(stage, seeds);
        self.timed(stage, || {
            let (captions, keep) = (Captions { text, null }, kept.map(|kept| &kept.decoder));
            let mut on_step = |step: StepEvent<'_>| hook(Event::new(stage, first, step));
            pipeline.decoder.sample(embedding, captions, keep, &request.decoder, &mut *noise, &mut on_step)
        })
    }

    /// Runs a stage, waits for the device and adds the time to the stage's.
    fn timed<T>(&mut self, stage: Stage, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let result = work()?;
        self.pipeline.device.sync().map_err(|e| Error::Device(format!("{e:?}")))?;
        let duration = start.elapsed();
        match self.times.iter_mut().find(|time| time.stage == stage) {
            Some(time) => time.duration += duration,
            None => self.times.push(StageTime { stage, duration }),
        }
        Ok(result)
    }
}

fn no_prior() -> Error {
    let message = "this pipeline has no prior, which would draw an image embedding for a caption: ask for variations of an \
                   image (GenerateRequest::variation_of) or give embeddings (GenerateRequest::embeddings)";
    Error::Mismatch(message.into())
}
