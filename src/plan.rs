//! A checked request, with the stages that it runs.

use burn::prelude::*;
use dalle2_core::diffusion::Resampling;
use dalle2_core::{ConfigError, Error, Result};

use crate::request::Start;
use crate::{GenerateRequest, Pipeline, Stage};

/// A stage of a request and its number of steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedStage {
    /// The stage.
    pub stage: Stage,
    /// Steps over all batches.
    pub steps: usize,
}

/// One image of a generation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Item {
    /// Index of its caption.
    pub caption: usize,
    pub seed: u64,
}

/// A request that the pipeline can run.
pub(crate) struct CheckedRequest {
    pub request: GenerateRequest,
    /// The distinct captions of the images.
    pub captions: Vec<String>,
    pub items: Vec<Item>,
    /// Number of upsamplers that run.
    pub upsamplers: usize,
    pub stages: Vec<PlannedStage>,
}

impl CheckedRequest {
    /// Steps over all stages and batches.
    pub(crate) fn steps(&self) -> usize {
        self.stages.iter().map(|planned| planned.steps).sum()
    }

    /// Fills in the embeddings of a request that was checked before they were computed.
    pub(crate) fn with_embeddings(mut self, embeddings: Tensor<2>) -> Self {
        self.request.start = Start::Embeddings(embeddings);
        self
    }
}

/// Resampling of the stages of an inpainting.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeepResampling {
    pub decoder: Resampling,
    pub upsamplers: Resampling,
}

impl Pipeline {
    /// Checks everything but the captions, and plans the stages.
    pub(crate) fn check(&self, request: GenerateRequest, keep: Option<KeepResampling>) -> Result<CheckedRequest> {
        let request = request.with_seed();
        request.validate()?;
        self.check_start(&request)?;
        self.check_guidance(&request)?;
        let upsamplers = self.upsamplers_of(&request)?;
        let stages = self.stages_of(&request, upsamplers, keep)?;
        let items: Vec<Item> = request.image_seeds()?.into_iter().map(|seed| Item { caption: 0, seed }).collect();
        Ok(CheckedRequest { captions: vec![request.caption.clone()], request, items, upsamplers, stages })
    }

    fn check_start(&self, request: &GenerateRequest) -> Result<()> {
        match &request.start {
            Start::Caption if self.prior.is_none() => Err(no_prior()),
            Start::EmbeddingOf(_) if self.image_encoder.is_none() => {
                Err(Error::Mismatch("variations of an image need an image encoder, which the pipeline lacks".into()))
            }
            Start::EmbeddingOf(image) => check_image(image),
            Start::Embeddings(embeddings) => self.check_embeddings(embeddings),
            Start::Caption | Start::Computed | Start::Images(_) => Ok(()),
        }
    }

    /// Checks the width, and that each embedding is finite and has a direction.
    fn check_embeddings(&self, embeddings: &Tensor<2>) -> Result<()> {
        let (width, expected) = (embeddings.dims()[1], self.decoder.embed_dim());
        if width != expected {
            return Err(Error::Input(format!("embeddings of width {width} for a decoder that reads {expected}")));
        }
        let lengths: Vec<f32> = (embeddings.clone().abs().sum_dim(1).try_into_vec_as())
            .map_err(|e| Error::Device(format!("reading embeddings: {e}")))?;
        for (i, length) in lengths.into_iter().enumerate() {
            if !length.is_finite() {
                return Err(Error::Input(format!("embedding {i} holds a value that is not finite")));
            }
            if length == 0.0 {
                return Err(Error::Input(format!("embedding {i} is zero and has no direction")));
            }
        }
        Ok(())
    }

    /// Refuses a negative caption without effect.
    fn check_guidance(&self, request: &GenerateRequest) -> Result<()> {
        if request.negative_caption.is_empty() {
            return Ok(());
        }
        // A part without a stated default may have guidance.
        let guided = |scale: Option<f64>, default: Option<f64>| scale.or(default) != Some(1.0);
        let images = matches!(request.start, Start::Images(_));
        let by_decoder = !images
            && request.stop_after != Some(Stage::Prior)
            && guided(request.decoder.guidance, self.decoder.defaults().guidance);
        let by_prior = matches!(request.start, Start::Caption)
            && self.prior.as_ref().is_some_and(|prior| guided(request.prior.guidance, prior.defaults().guidance));
        if !by_decoder && !by_prior {
            let expected = "must be empty where no stage has guidance: set `guidance` above 1";
            let value = format!("{:?}", request.negative_caption);
            return Err(ConfigError::new("negative_caption", value, expected).into());
        }
        Ok(())
    }

    /// The number of upsamplers that a request runs.
    fn upsamplers_of(&self, request: &GenerateRequest) -> Result<usize> {
        let all = self.upsamplers.len();
        if let Some((index, _)) = request.upsampler_overrides.iter().find(|(i, _)| *i >= all) {
            let expected = format!("must be below {all}, the pipeline's number of upsamplers");
            return Err(ConfigError::new("upsampler_options_of", index, expected).into());
        }
        let limit = request.max_upsamplers.unwrap_or(all);
        if limit > all {
            let expected = format!("must be at most {all}, the pipeline's number of upsamplers");
            return Err(ConfigError::new("max_upsamplers", limit, expected).into());
        }
        let stop = match (request.stop_after, &request.start) {
            (None, _) => all,
            (Some(Stage::Upsampler(index)), _) if index < all => index + 1,
            (Some(Stage::Prior | Stage::Decoder), start) if !matches!(start, Start::Images(_)) => 0,
            (Some(stage), _) => {
                let expected = "must be a stage that the request reaches";
                return Err(ConfigError::new("stop_after", stage, expected).into());
            }
        };
        let Some(size) = request.size else { return Ok(limit.min(stop)) };
        let sizes = self.image_sizes();
        match sizes.iter().position(|side| *side == size) {
            Some(upsamplers) => Ok(limit.min(stop).min(upsamplers)),
            None => Err(ConfigError::new("size", size, format!("must be one of {sizes:?}")).into()),
        }
    }

    /// Side in pixels of the decoder's images and of each upsampler's.
    pub(crate) fn image_sizes(&self) -> Vec<usize> {
        let mut sizes = vec![self.decoder.image_size()];
        for upsampler in &self.upsamplers {
            sizes.push(sizes[sizes.len() - 1] * upsampler.factor());
        }
        sizes
    }

    /// Checks the options of every stage, and lists the stages that run.
    pub(crate) fn stages_of(
        &self,
        request: &GenerateRequest,
        upsamplers: usize,
        keep: Option<KeepResampling>,
    ) -> Result<Vec<PlannedStage>> {
        let batches = request.num_images.div_ceil(request.batch_size);
        let mut stages = Vec::new();
        let mut add = |stage, steps: usize| stages.push(PlannedStage { stage, steps: steps * batches });
        if let (Start::Caption, Some(prior)) = (&request.start, &self.prior) {
            add(Stage::Prior, within("prior", prior.num_steps(&request.prior))?);
        }
        let steps = within("decoder", self.decoder.num_steps(&request.decoder, keep.map(|keep| keep.decoder)))?;
        if !matches!(request.start, Start::Images(_)) && request.stop_after != Some(Stage::Prior) {
            add(Stage::Decoder, steps);
        }
        for (index, upsampler) in self.upsamplers.iter().enumerate() {
            let options = request.options_of(index);
            let steps = within("upsampler", upsampler.num_steps(options, keep.map(|keep| keep.upsamplers)))?;
            if index < upsamplers {
                add(Stage::Upsampler(index), steps);
            }
        }
        Ok(stages)
    }
}

/// Prefixes the field of an error with the stage.
fn within(stage: &str, result: Result<usize>) -> Result<usize> {
    result.map_err(|error| match error {
        Error::Config(error) => error.within(stage).into(),
        other => other,
    })
}

/// Refuses images without pixels.
pub(crate) fn check_image(image: &dalle2_core::image::RgbImage) -> Result<()> {
    let (width, height) = image.dimensions();
    if width == 0 || height == 0 {
        return Err(Error::Input(format!("an image of {width}×{height} pixels is empty")));
    }
    Ok(())
}

pub(crate) fn no_prior() -> Error {
    let message = "this pipeline has no prior, which a caption needs: request variations of an image \
                   (GenerateRequest::variation_of) or give embeddings (GenerateRequest::embeddings)";
    Error::Mismatch(message.into())
}
