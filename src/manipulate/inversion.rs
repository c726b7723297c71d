//! Taking an image apart into its embedding and its noise, and putting it together again.

use burn::prelude::*;
use dalle2_core::diffusion::{NoiseSource, Sampler};
use dalle2_core::image::{RgbImage, fit_square, to_tensor};
use dalle2_core::metrics::psnr;
use dalle2_core::{Captions, DdimInversion, Error, Result, StepEvent, TextCondition};

use super::Controls;
use super::noise::{Failed, StartFrom};
use crate::{Event, GenerateRequest, Generation, Pipeline, Stage};

/// How an image is taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvertOptions {
    /// Evaluations of the network per step, from 1 to 100. One is the usual DDIM inversion, whose error falls with the
    /// number of steps; each further one brings the inversion closer to the exact inverse of the steps taken.
    pub evaluations: usize,
    /// How many upsamplers are inverted too, beginning with the first.
    pub upsamplers: usize,
}

impl Default for InvertOptions {
    fn default() -> Self {
        Self { evaluations: 2, upsamplers: 0 }
    }
}

/// An image taken apart: what it shows, and the rest.
#[derive(Debug, Clone)]
pub struct Inversion {
    /// z_i `[1, D]`, CLIP's embedding of the image.
    pub embedding: Tensor<2>,
    /// x_T `[1, 3, S, S]`, from which the decoder with η = 0 draws the image under z_i.
    pub noise: Tensor<4>,
    /// The same for each upsampler that was inverted.
    pub upsampler_noise: Vec<Tensor<4>>,
    /// What comes out of them.
    pub reconstruction: RgbImage,
    /// Peak signal-to-noise ratio of the reconstruction in decibel, against the image at that size.
    pub psnr: f64,
}

/// Which noise the images of a request get where none is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seeds {
    /// That of the first image, so that frames differ in nothing else.
    Shared,
    /// Image i has `seed + i`.
    PerImage,
}

impl Pipeline {
    /// Takes an image apart, and measures how well it can be put together again.
    ///
    /// The largest square in the middle is read. The request gives the caption that the decoder reads, the steps and the
    /// guidance; without guidance of its own it has none, since guidance makes the way back inexact.
    ///
    /// # Errors
    /// When the pipeline has no image encoder or a part cannot invert, the image is empty, or an option is out of range.
    pub fn invert(
        &self,
        image: &RgbImage,
        options: &InvertOptions,
        request: impl Into<GenerateRequest>,
    ) -> Result<Inversion> {
        self.invert_with(image, options, request, &mut Controls::new())
    }

    /// Like [`Pipeline::invert`], with controls.
    ///
    /// # Errors
    /// As [`Pipeline::invert`], and when the hook stops it.
    pub fn invert_with(
        &self,
        image: &RgbImage,
        options: &InvertOptions,
        request: impl Into<GenerateRequest>,
        controls: &mut Controls<'_>,
    ) -> Result<Inversion> {
        let mut request = deterministic(request.into().without_start()?).num_images(1);
        self.validate(&request.clone().embeddings(Tensor::zeros([1, self.decoder.embed_dim()], &self.device)))?;
        self.check_caption(&request.caption)?;
        if options.upsamplers > self.upsamplers.len() {
            let (wanted, all) = (options.upsamplers, self.upsamplers.len());
            return Err(Error::Input(format!("{wanted} upsamplers to invert; the pipeline has {all}")));
        }
        // The options say how far it goes.
        (request.size, request.stop_after) = (None, None);
        let embedding = self.embed(image)?;
        let texts = self.texts(&request)?;
        let x_0 = self.target(image, self.decoder.image_size())?;
        let noise = {
            let mut on_step = |step: StepEvent<'_>| (controls.hook)(Event::new(Stage::Inversion, 0, step));
            let captions = Captions { text: &texts.0, null: &texts.1 };
            let inversion = DdimInversion { sampling: request.decoder.clone(), evaluations: options.evaluations };
            self.decoder.invert(&x_0, &embedding, captions, &inversion, &mut on_step)?
        };
        let mut upsampler_noise = Vec::new();
        let reconstruct = |upsampler_noise: &[Tensor<4>], controls: &mut Controls<'_>| {
            let upsamplers = upsampler_noise.len();
            let request = request.clone().embeddings(embedding.clone()).max_upsamplers(upsamplers);
            self.draw_from(request, (&noise, upsampler_noise), Seeds::Shared, controls)
                .map(|generation| generation.images)
        };
        let mut drawn = reconstruct(&upsampler_noise, controls)?;
        let mut target = x_0;
        for (index, upsampler) in self.upsamplers.iter().enumerate().take(options.upsamplers) {
            let low = to_tensor(&drawn, &self.device)?;
            target = self.target(image, low.dims()[3] * upsampler.factor())?;
            let mut on_step = |step: StepEvent<'_>| (controls.hook)(Event::new(Stage::Inversion, 0, step));
            let sampling = request.options_of(index).clone();
            let inversion = DdimInversion { sampling, evaluations: options.evaluations };
            let x_t = upsampler.invert(&target, &low, &inversion, &mut on_step)?;
            upsampler_noise.push(x_t);
            drawn = reconstruct(&upsampler_noise, controls)?;
        }
        let psnr = psnr(target, to_tensor(&drawn, &self.device)?)?.remove(0);
        let reconstruction = drawn.remove(0);
        Ok(Inversion { embedding, noise, upsampler_noise, reconstruction, psnr })
    }

    /// The two halves of an image: its embedding, and the noise of the decoder. The latter is not sought, but zero, when
    /// the request ends before it is needed.
    pub(super) fn halves(
        &self,
        image: &RgbImage,
        options: &InvertOptions,
        request: &GenerateRequest,
        controls: &mut Controls<'_>,
    ) -> Result<(Tensor<2>, Tensor<4>)> {
        if request.stop_after == Some(Stage::Prior) {
            let size = self.decoder.image_size();
            return Ok((self.embed(image)?, Tensor::zeros([1, 3, size, size], &self.device)));
        }
        let options = InvertOptions { upsamplers: 0, ..*options };
        let Inversion { embedding, noise, .. } = self.invert_with(image, &options, request.clone(), controls)?;
        Ok((embedding, noise))
    }

    /// CLIP's embedding `[1, D]` of the largest square in the middle of an image.
    ///
    /// # Errors
    /// When the pipeline has no image encoder or the image is empty.
    pub fn embed(&self, image: &RgbImage) -> Result<Tensor<2>> {
        let Some(encoder) = &self.image_encoder else {
            return Err(Error::Mismatch("an image has to be embedded, but the pipeline has no image encoder".into()));
        };
        check_image(image)?;
        let side = image.width().min(image.height());
        encoder.encode(to_tensor(&[fit_square(image, side)], &self.device)?)
    }

    /// The image as a stage should draw it: `[1, 3, size, size]`.
    fn target(&self, image: &RgbImage, size: usize) -> Result<Tensor<4>> {
        to_tensor(&[fit_square(image, size as u32)], &self.device)
    }

    /// The caption of a request and its negative caption, encoded.
    fn texts(&self, request: &GenerateRequest) -> Result<(TextCondition, TextCondition)> {
        let negative = self.text_encoder.encode(&[request.negative_caption.as_str()])?;
        Ok((self.text_encoder.encode(&[request.caption.as_str()])?, negative))
    }

    /// Draws the images of a request, the decoder from given noise `[1 or n, 3, S, S]`, and upsamplers from theirs.
    pub(super) fn draw_from(
        &self,
        request: GenerateRequest,
        (noise, upsampler_noise): (&Tensor<4>, &[Tensor<4>]),
        shared: Seeds,
        controls: &mut Controls<'_>,
    ) -> Result<Generation> {
        let Controls { hook, noise: rest } = controls;
        let request = request.settled();
        let seed = request.seed.unwrap_or_default();
        let mut first = 0;
        let noise_of = |stage: Stage, seeds: &[u64]| -> Box<dyn NoiseSource> {
            let rest = match shared {
                Seeds::Shared => rest(stage, &vec![seed; seeds.len()]),
                Seeds::PerImage => rest(stage, seeds),
            };
            let given = match stage {
                Stage::Decoder => {
                    first += seeds.len();
                    Some(noise)
                }
                Stage::Upsampler(index) => upsampler_noise.get(index),
                _ => None,
            };
            let Some(x_t) = given else { return rest };
            let x_t = match x_t.dims()[0] {
                1 => x_t.clone().repeat_dim(0, seeds.len()),
                _ => x_t.clone().slice_dim(0, first - seeds.len()..first),
            };
            match StartFrom::new(x_t, rest) {
                Ok(noise) => Box::new(noise),
                Err(error) => Box::new(Failed(error.to_string())),
            }
        };
        self.generate_from(request, noise_of, &mut **hook)
    }
}

/// DDIM with η = 0 in every stage that draws images, and no guidance unless the request asks for it.
pub(super) fn deterministic(request: GenerateRequest) -> GenerateRequest {
    with_eta(request, 0.0)
}

/// DDIM with this η in the decoder and 0 in the upsamplers, and no guidance unless the request asks for it.
pub(super) fn with_eta(mut request: GenerateRequest, eta: f64) -> GenerateRequest {
    request.decoder.guidance.get_or_insert(1.0);
    request.decoder.sampler = Some(Sampler::Ddim { eta });
    let overrides = request.upsampler_overrides.iter_mut().map(|(_, options)| options);
    for options in overrides.chain([&mut request.upsampler]) {
        options.sampler = Some(Sampler::Ddim { eta: 0.0 });
    }
    request
}

/// Refuses images that have no pixels.
pub(super) fn check_image(image: &RgbImage) -> Result<()> {
    match image.width() > 0 && image.height() > 0 {
        true => Ok(()),
        false => {
            Err(Error::Input(format!("an image of {}×{} pixels has nothing to see", image.width(), image.height())))
        }
    }
}
