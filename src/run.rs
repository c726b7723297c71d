//! Running the stages of a checked request.

use std::time::Instant;

use burn::prelude::*;
use dalle2_core::image::{RgbImage, from_tensor, to_tensor};
use dalle2_core::{Captions, Error, Result, StepEvent, TextCondition};

use crate::manipulate::{KeepImage, StartFrom};
use crate::plan::{CheckedRequest, Item, no_prior};
use crate::request::Start;
use crate::{Controls, Generation, Pipeline, Stage, StageTime};

/// Inputs of a generation beside the request.
#[derive(Clone, Copy, Default)]
pub(crate) struct Inputs<'a> {
    /// The image whose unedited pixels are preserved.
    pub keep: Option<&'a KeepImage>,
    /// The initial noise `[1 or n, 3, S, S]` of the decoder.
    pub x_t: Option<&'a Tensor<4>>,
    /// The initial noise of the first upsamplers.
    pub upsampler_x_t: &'a [Tensor<4>],
}

impl Inputs<'_> {
    /// The initial noise of a stage.
    fn noise_of(&self, stage: Stage) -> Option<&Tensor<4>> {
        match stage {
            Stage::Decoder => self.x_t,
            Stage::Upsampler(index) => self.upsampler_x_t.get(index),
            _ => None,
        }
    }
}

impl Pipeline {
    /// Generates the images of a checked request, after its captions have passed the filters.
    pub(crate) fn execute(
        &self,
        checked: &CheckedRequest,
        inputs: Inputs<'_>,
        controls: &mut Controls<'_>,
    ) -> Result<Generation> {
        self.filter_captions(checked)?;
        controls.claim(checked.steps());
        let mut run = GenerationRun { pipeline: self, checked, inputs, times: Vec::new() };
        let text = run.encode_captions()?;
        let embeddings = run.starting_embeddings()?;
        let mut images = Vec::with_capacity(checked.items.len());
        let mut all_embeddings = Vec::new();
        for (i, items) in checked.items.chunks(checked.request.batch_size).enumerate() {
            let first = i * checked.request.batch_size;
            let batch = Batch { first, items };
            let embedding = run.embedding(&batch, text.as_ref(), embeddings.as_ref(), controls)?;
            if checked.request.stop_after != Some(Stage::Prior) {
                let tensor = run.images(&batch, text.as_ref(), embedding.as_ref(), controls)?;
                let mut batch = from_tensor(tensor)?;
                if let Some(keep) = inputs.keep {
                    batch.iter_mut().try_for_each(|image| keep.restore(image))?;
                }
                self.filter_images(&batch, first)?;
                images.extend(batch);
            }
            all_embeddings.extend(embedding);
        }
        let embeddings = (!all_embeddings.is_empty()).then(|| Tensor::cat(all_embeddings, 0));
        let seeds = checked.items.iter().map(|item| item.seed).collect();
        Ok(Generation { images, embeddings, seeds, times: run.times })
    }
}

/// Images that are sampled together.
struct Batch<'a> {
    /// Index of the first of them.
    first: usize,
    items: &'a [Item],
}

impl Batch<'_> {
    fn seeds(&self) -> Vec<u64> {
        self.items.iter().map(|item| item.seed).collect()
    }

    fn rows(&self) -> std::ops::Range<usize> {
        self.first..self.first + self.items.len()
    }

    /// The rows of this batch in a tensor of one row per image, or copies of its only row.
    fn slice<const D: usize>(&self, tensor: &Tensor<D>) -> Tensor<D> {
        if tensor.dims()[0] == 1 {
            tensor.clone().repeat_dim(0, self.items.len())
        } else {
            tensor.clone().slice_dim(0, self.rows())
        }
    }
}

/// The encoded captions of a request.
struct EncodedCaptions {
    /// One row per distinct caption.
    text: TextCondition,
    null: TextCondition,
}

struct GenerationRun<'a> {
    pipeline: &'a Pipeline,
    checked: &'a CheckedRequest,
    inputs: Inputs<'a>,
    times: Vec<StageTime>,
}

impl GenerationRun<'_> {
    /// Encodes the captions, unless the request starts from images.
    fn encode_captions(&mut self) -> Result<Option<EncodedCaptions>> {
        let (pipeline, checked) = (self.pipeline, self.checked);
        if matches!(checked.request.start, Start::Images(_)) {
            return Ok(None);
        }
        let mut captions = vec![checked.request.negative_caption.as_str()];
        captions.extend(checked.captions.iter().map(String::as_str));
        let all = self.timed(Stage::TextEncoder, || pipeline.text_encoder.encode(&captions))?;
        Ok(Some(EncodedCaptions { text: all.rows(1, checked.captions.len()), null: all.rows(0, 1) }))
    }

    /// The embeddings `[1 or n, D]` that replace the prior's.
    fn starting_embeddings(&mut self) -> Result<Option<Tensor<2>>> {
        let pipeline = self.pipeline;
        match &self.checked.request.start {
            Start::Embeddings(embeddings) => Ok(Some(embeddings.clone())),
            Start::EmbeddingOf(image) => self.timed(Stage::ImageEncoder, || pipeline.encode_image(image)).map(Some),
            Start::Computed => Err(Error::Input("the embeddings of an operation have not been computed".into())),
            Start::Caption | Start::Images(_) => Ok(None),
        }
    }

    /// The embeddings of a batch; `None` if the request starts from images.
    fn embedding(
        &mut self,
        batch: &Batch<'_>,
        captions: Option<&EncodedCaptions>,
        given: Option<&Tensor<2>>,
        controls: &mut Controls<'_>,
    ) -> Result<Option<Tensor<2>>> {
        let (pipeline, checked, stage) = (self.pipeline, self.checked, Stage::Prior);
        if let Some(given) = given {
            return Ok(Some(batch.slice(given)));
        }
        let Some(captions) = captions else { return Ok(None) };
        let prior = pipeline.prior.as_ref().ok_or_else(no_prior)?;
        let text = captions.rows_of(batch);
        let captions = Captions { text: &text, null: &captions.null };
        let mut noise = controls.source(stage, &batch.seeds());
        self.timed(stage, || {
            let mut on_step = |step: StepEvent<'_>| controls.step(stage, batch.first, step);
            prior.sample(captions, &checked.request.prior, &mut *noise, &mut on_step).map(Some)
        })
    }

    /// The images `[n, 3, H, W]` of a batch.
    fn images(
        &mut self,
        batch: &Batch<'_>,
        captions: Option<&EncodedCaptions>,
        embedding: Option<&Tensor<2>>,
        controls: &mut Controls<'_>,
    ) -> Result<Tensor<4>> {
        let (pipeline, checked, inputs) = (self.pipeline, self.checked, self.inputs);
        let mut images = match (&checked.request.start, captions, embedding) {
            (Start::Images(images), ..) => to_tensor(&batch_of(images, batch), &pipeline.device)?,
            (_, Some(captions), Some(embedding)) => {
                let text = captions.rows_of(batch);
                let captions = Captions { text: &text, null: &captions.null };
                let keep = inputs.keep.map(|keep| &keep.decoder);
                let (stage, options) = (Stage::Decoder, &checked.request.decoder);
                self.sampled(stage, batch, controls, |noise, hook| {
                    pipeline.decoder.sample(embedding, captions, keep, options, noise, hook)
                })?
            }
            _ => return Err(Error::Input("neither captions nor images to start from".into())),
        };
        for (index, upsampler) in pipeline.upsamplers.iter().enumerate().take(checked.upsamplers) {
            let keep = inputs.keep.map(|keep| &keep.upsamplers);
            let options = checked.request.options_of(index);
            images = self.sampled(Stage::Upsampler(index), batch, controls, |noise, hook| {
                upsampler.sample(&images, keep, options, noise, hook)
            })?;
        }
        Ok(images)
    }

    /// Runs a stage that samples images, with its noise and its hook.
    fn sampled(
        &mut self,
        stage: Stage,
        batch: &Batch<'_>,
        controls: &mut Controls<'_>,
        sample: impl FnOnce(&mut dyn dalle2_core::diffusion::NoiseSource, dalle2_core::StepHook<'_>) -> Result<Tensor<4>>,
    ) -> Result<Tensor<4>> {
        let mut noise = controls.source(stage, &batch.seeds());
        if let Some(x_t) = self.inputs.noise_of(stage) {
            noise = Box::new(StartFrom::new(batch.slice(x_t), noise)?);
        }
        self.timed(stage, || sample(&mut *noise, &mut |step| controls.step(stage, batch.first, step)))
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

impl EncodedCaptions {
    /// The caption of each image of a batch.
    fn rows_of(&self, batch: &Batch<'_>) -> TextCondition {
        let rows: Vec<usize> = batch.items.iter().map(|item| item.caption).collect();
        self.text.select(&rows)
    }
}

/// The images of a batch, or copies of the only one.
fn batch_of(images: &[RgbImage], batch: &Batch<'_>) -> Vec<RgbImage> {
    match images {
        [only] => vec![only.clone(); batch.items.len()],
        _ => images[batch.rows()].to_vec(),
    }
}
