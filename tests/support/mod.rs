//! A pipeline of small random parts, for tests.
#![allow(dead_code, clippy::unwrap_used)] // every test file uses a part of it

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Tensor, TensorData};
use dalle2::base::diffusion::{NoiseSource, SeededNoise};
use dalle2::clip::{Clip, ClipConfig, ClipImageEncoder, ClipTextEncoder};
use dalle2::decoder::{DecoderConfig, DiffusionUpsampler, UnclipDecoder, UpsamplerConfig};
use dalle2::prior::{DiffusionPrior, DiffusionPriorConfig};
use dalle2::{Device, GenerateRequest, Pipeline, RgbImage};

pub fn clip() -> ClipConfig {
    ClipConfig::tiny().with_vocabulary([320, 736, 3055, 49406, 49407])
}

/// Replaces every weight by noise, the same for the same seed: the last convolution of a fresh network is zero, so all
/// its images are grey, and weights that are others in each run would now and then make a test fail.
pub struct Randomise(SeededNoise);

impl Randomise {
    pub fn new(seed: u64) -> Self {
        Self(SeededNoise::new(&[seed], 0))
    }
}

impl ModuleMapper for Randomise {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|value| seeded_like(&value, &mut self.0) * 0.1)
    }
}

/// Replaces what a fresh network drew by what a seed gives, as large; zeros and ones stay.
pub struct Redraw(SeededNoise);

impl Redraw {
    pub fn new(seed: u64) -> Self {
        Self(SeededNoise::new(&[seed], 0))
    }
}

impl ModuleMapper for Redraw {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|value| {
            let mean = value.clone().mean().into_scalar::<f32>();
            let spread = (value.clone() - mean).square().mean().sqrt().into_scalar::<f32>();
            seeded_like(&value, &mut self.0) * spread + mean
        })
    }
}

fn seeded_like<const D: usize>(value: &Tensor<D>, noise: &mut SeededNoise) -> Tensor<D> {
    let values = noise.normal(&[1, value.shape().num_elements()]).unwrap();
    Tensor::from_data(TensorData::new(values, value.shape()), &value.device())
}

/// The weights of [`clip`].
pub fn clip_network(device: &Device) -> Clip {
    clip().init(device).map(&mut Redraw::new(4))
}

pub fn prior(embed_dim: usize, device: &Device) -> DiffusionPrior {
    let mut config = DiffusionPriorConfig::tiny(embed_dim, clip().text.d_model, clip().text.context_length);
    config.d_model = 32;
    config.n_heads = 2;
    config.n_layers = 1;
    let network = config.init(device).map(&mut Randomise::new(1));
    DiffusionPrior::new(config, network).unwrap()
}

pub fn decoder(image_size: usize, device: &Device) -> UnclipDecoder {
    let mut config = DecoderConfig::tiny(clip().embed_dim(), clip().text.d_model);
    config.image_size = image_size;
    config.unet.channels = vec![16, 32];
    config.unet.n_groups = 8;
    config.unet.head_dim = 16;
    config.unet.context_dim = Some(16);
    let network = config.init(device).map(&mut Randomise::new(2));
    UnclipDecoder::new(config, network).unwrap()
}

pub fn upsampler(input_size: usize, device: &Device) -> DiffusionUpsampler {
    let mut config = UpsamplerConfig::tiny();
    config.input_size = input_size;
    config.unet.channels = vec![16, 16];
    config.unet.n_groups = 8;
    let network = config.init(device).map(&mut Randomise::new(3));
    DiffusionUpsampler::new(config, network).unwrap()
}

pub fn pipeline(device: &Device) -> Pipeline {
    let (config, model) = (clip(), clip_network(device));
    Pipeline::builder()
        .text_encoder(ClipTextEncoder::new(config.text.clone(), &model.text).unwrap())
        .image_encoder(ClipImageEncoder::new(config.vision.clone(), &model.vision).unwrap())
        .prior(prior(config.embed_dim(), device))
        .decoder(decoder(16, device))
        .upsampler(upsampler(16, device))
        .device(device)
        .build()
        .unwrap()
}

pub fn request() -> GenerateRequest {
    GenerateRequest::new("a red apple").seed(7).prior_steps(3).decoder_steps(3).upsampler_steps(2)
}

/// Shades from one corner to the other.
pub fn gradient(width: u32, height: u32, tint: u8) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| image::Rgb([tint, (x * 255 / width) as u8, (y * 255 / height) as u8]))
}
