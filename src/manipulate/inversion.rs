//! Inversion of an image to its embedding and its noise.

use burn::prelude::*;
use dalle2_core::diffusion::Sampler;
use dalle2_core::image::{RgbImage, fit_square, to_tensor};
use dalle2_core::metrics::psnr;
use dalle2_core::{Captions, DdimInversion, Error, Result, StepEvent};

use super::Operation;
use crate::plan::check_image;
use crate::request::Start;
use crate::run::Inputs;
use crate::{Controls, GenerateRequest, Pipeline, Stage};

/// Evaluations per step if a request sets none.
pub(super) const DEFAULT_EVALUATIONS: usize = 2;

/// Inversion of an image.
#[derive(Debug, Clone)]
pub struct Invert {
    image: RgbImage,
    evaluations: usize,
    upsamplers: usize,
}

impl Invert {
    pub(super) fn new(image: RgbImage) -> Self {
        Self { image, evaluations: DEFAULT_EVALUATIONS, upsamplers: 0 }
    }
}

/// An inverted image.
#[derive(Debug, Clone)]
pub struct Inversion {
    /// z_i `[1, D]`, CLIP's embedding of the image.
    pub embedding: Tensor<2>,
    /// x_T `[1, 3, S, S]`, from which the decoder with η = 0 reproduces the image under z_i.
    pub noise: Tensor<4>,
    /// x_T of each inverted upsampler.
    pub upsampler_noise: Vec<Tensor<4>>,
    /// The reconstruction from embedding and noise.
    pub reconstruction: RgbImage,
    /// Peak signal-to-noise ratio of the reconstruction in decibel, against the image at that size.
    pub psnr: f64,
}

impl Operation<'_, Invert> {
    /// Sets the evaluations of the network per step, from 1 to 100. One is plain DDIM inversion, whose error falls with the
    /// number of steps; each further one brings the result closer to the exact inverse of the steps.
    pub fn evaluations(mut self, n: usize) -> Self {
        self.kind.evaluations = n;
        self
    }

    /// Sets the number of upsamplers to invert too, from the first; 0 by default.
    pub fn upsamplers(mut self, n: usize) -> Self {
        self.kind.upsamplers = n;
        self
    }

    /// Inverts the image.
    ///
    /// # Errors
    /// If the pipeline has no image encoder or a part cannot invert, the image is empty, an option is out of range, or the
    /// hook returns an error.
    pub fn run(self) -> Result<Inversion> {
        let Self { pipeline, request, mut controls, kind } = self;
        let Invert { image, evaluations, upsamplers } = kind;
        let all = pipeline.upsamplers.len();
        if upsamplers > all {
            return Err(Error::Input(format!("cannot invert {upsamplers} upsamplers: the pipeline has {all}")));
        }
        let noise = pipeline.find_noise(&image, evaluations, &request, &mut controls)?;
        let embedding = pipeline.embed_image(&image)?;
        let mut request = deterministic(request).num_images(1).embeddings(embedding.clone());
        // The number of upsamplers sets the last stage.
        (request.size, request.stop_after) = (None, None);
        let mut upsampler_noise: Vec<Tensor<4>> = Vec::new();
        let reconstruct = |upsampler_noise: &[Tensor<4>], controls: &mut Controls<'_>| -> Result<Vec<RgbImage>> {
            let checked = pipeline.check(request.clone().max_upsamplers(upsampler_noise.len()), None)?;
            let inputs = Inputs { x_t: Some(&noise), upsampler_x_t: upsampler_noise, ..Default::default() };
            Ok(pipeline.execute(&checked, inputs, controls)?.images)
        };
        let mut images = reconstruct(&upsampler_noise, &mut controls)?;
        let mut target = pipeline.target(&image, pipeline.decoder.image_size())?;
        for (index, upsampler) in pipeline.upsamplers.iter().enumerate().take(upsamplers) {
            let low = to_tensor(&images, &pipeline.device)?;
            target = pipeline.target(&image, low.dims()[3] * upsampler.factor())?;
            let mut on_step = |step: StepEvent<'_>| controls.step(Stage::Inversion, 0, step);
            let inversion = DdimInversion { sampling: request.options_of(index).clone(), evaluations };
            upsampler_noise.push(upsampler.invert(&target, &low, &inversion, &mut on_step)?);
            images = reconstruct(&upsampler_noise, &mut controls)?;
        }
        let psnr = psnr(target, to_tensor(&images, &pipeline.device)?)?.remove(0);
        Ok(Inversion { embedding, noise, upsampler_noise, reconstruction: images.remove(0), psnr })
    }
}

impl Pipeline {
    /// Reserves the steps of an inversion with [`Self::find_noise`].
    pub(super) fn reserve_inversion(
        &self,
        evaluations: usize,
        request: &GenerateRequest,
        controls: &mut Controls<'_>,
    ) -> Result<()> {
        if request.stop_after != Some(Stage::Prior) {
            let sampling = deterministic(request.clone()).decoder;
            controls.reserve(evaluations * self.decoder.num_steps(&sampling, None)?);
        }
        Ok(())
    }

    /// The noise `[1, 3, S, S]` of an image under its own embedding; zero if the request stops before the decoder.
    pub(super) fn find_noise(
        &self,
        image: &RgbImage,
        evaluations: usize,
        request: &GenerateRequest,
        controls: &mut Controls<'_>,
    ) -> Result<Tensor<4>> {
        let size = self.decoder.image_size();
        if request.stop_after == Some(Stage::Prior) {
            return Ok(Tensor::zeros([1, 3, size, size], &self.device));
        }
        check_image(image)?;
        let mut request = deterministic(request.clone().without_start()?).num_images(1);
        request.start = Start::Computed;
        let checked = self.check(request, None)?;
        self.filter_captions(&checked)?;
        let request = checked.request;
        let embedding = self.embed_image(image)?;
        let [null, text] =
            [&request.negative_caption, &request.caption].map(|caption| self.text_encoder.encode(&[caption.as_str()]));
        let (text, null) = (text?, null?);
        let captions = Captions { text: &text, null: &null };
        let steps = self.decoder.num_steps(&request.decoder, None)?;
        controls.claim(steps * evaluations);
        let inversion = DdimInversion { sampling: request.decoder, evaluations };
        let mut on_step = |step: StepEvent<'_>| controls.step(Stage::Inversion, 0, step);
        self.decoder.invert(&self.target(image, size)?, &embedding, captions, &inversion, &mut on_step)
    }

    /// The image that a stage should reproduce: `[1, 3, size, size]`.
    fn target(&self, image: &RgbImage, size: usize) -> Result<Tensor<4>> {
        to_tensor(&[fit_square(image, size as u32)], &self.device)
    }
}

/// DDIM with η = 0 in every stage that samples images, and no guidance unless the request sets a scale.
pub(super) fn deterministic(request: GenerateRequest) -> GenerateRequest {
    with_eta(request, 0.0)
}

/// DDIM with this η in the decoder and 0 in the upsamplers, and no guidance unless the request sets a scale.
pub(super) fn with_eta(mut request: GenerateRequest, eta: f64) -> GenerateRequest {
    request.decoder.guidance.get_or_insert(1.0);
    request.decoder.sampler = Some(Sampler::Ddim { eta });
    for options in request.all_upsampler_options() {
        options.sampler = Some(Sampler::Ddim { eta: 0.0 });
    }
    request
}
