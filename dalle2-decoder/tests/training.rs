//! Training steps of decoder and upsampler, by overfitting.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![cfg(feature = "train")]

use burn::module::{ModuleVisitor, Param};
use burn::optim::{AdamConfig, GradientsParams};
use burn::prelude::*;
use burn::train::TrainStep;
use dalle2_core::{TextCondition, TokenMask};
use dalle2_decoder::train::{ConditionDropout, CropOptions, DecoderBatch, DecoderTask, UpsamplerBatch, UpsamplerTask};
use dalle2_decoder::{DecoderConfig, UpsamplerConfig};

/// Four images of one colour each, `[4, 3, size, size]`.
fn images(size: usize, device: &Device) -> Tensor<4> {
    let colours = [[1.0f32, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0], [0.5, 0.5, -0.5]];
    let values = TensorData::new(colours.concat(), [4, 3, 1, 1]);
    Tensor::<4>::from_data(values, device).expand([4, 3, size, size])
}

fn text(batch: usize, device: &Device) -> TextCondition {
    TextCondition {
        pooled: Tensor::zeros([batch, 4], device),
        tokens: Tensor::ones([batch, 3, 6], device),
        mask: TokenMask::from_lengths(&vec![2; batch], 3, device),
    }
}

fn decoder_config() -> DecoderConfig {
    let mut config = DecoderConfig::tiny(4, 6);
    config.image_size = 8;
    config.unet.channels = vec![16, 32];
    config.unet.n_groups = 8;
    config.unet.head_dim = 16;
    config.unet.context_dim = Some(16);
    config
}

fn decoder_batch(seed: u64, device: &Device) -> DecoderBatch {
    let embedding = Tensor::<2>::eye(4, device);
    let dropout = ConditionDropout { image: 0.0, text: 0.5 };
    DecoderBatch::draw(seed, images(8, device), embedding, &text(4, device), &text(1, device), dropout, 1000)
}

#[test]
fn the_decoder_overfits_one_batch() {
    let device = Device::flex().autodiff();
    device.seed(1);
    let mut task = DecoderTask::new(&decoder_config(), &device).unwrap();
    let mut optim = AdamConfig::new().with_epsilon(1e-8).init();
    let mse = |task: &DecoderTask| task.loss(decoder_batch(0, &device)).mse.into_scalar::<f32>();
    let before = mse(&task);
    for _ in 0..300 {
        let out = task.step(decoder_batch(0, &device));
        task = optim.step(3e-3, task, out.grads);
    }
    let after = mse(&task);
    assert!(before > 0.5, "a fresh network predicts zero, so its error is the target's variance: {before}");
    assert!(after < 0.05, "mean squared error {before} -> {after}");
}

#[test]
fn the_upsampler_overfits_one_batch() {
    let device = Device::flex().autodiff();
    device.seed(2);
    let mut config = UpsamplerConfig::tiny();
    config.input_size = 4;
    config.unet.patch = 2;
    config.unet.channels = vec![16, 32];
    config.unet.n_groups = 8;
    let mut task = UpsamplerTask::new(&config, &device).unwrap();
    let mut optim = AdamConfig::new().with_epsilon(1e-8).init();
    let options = CropOptions { fraction: 0.5, ..Default::default() };
    let batch = |seed| UpsamplerBatch::draw(seed, images(16, &device), options, &config).unwrap();
    assert_eq!(batch(0).low.dims(), [4, 3, 8, 8]);
    let mse = |task: &UpsamplerTask| task.loss(batch(0)).mse.into_scalar::<f32>();
    let before = mse(&task);
    for _ in 0..300 {
        let out = task.step(batch(0));
        task = optim.step(3e-3, task, out.grads);
    }
    let after = mse(&task);
    assert!(before > 0.3, "{before}");
    assert!(after < 0.05, "mean squared error {before} -> {after}");
}

/// Counts parameters without a gradient.
struct WithoutGradient<'a> {
    grads: &'a GradientsParams,
    path: Vec<String>,
    missing: Vec<String>,
}

impl ModuleVisitor for WithoutGradient<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.grads.get::<D>(param.id).is_none() {
            self.missing.push(self.path.join("."));
        }
    }
}

#[test]
fn every_parameter_of_the_decoder_has_a_gradient() {
    let device = Device::flex().autodiff();
    let task = DecoderTask::new(&decoder_config(), &device).unwrap();
    let dropout = ConditionDropout { image: 0.5, text: 0.5 };
    let eye = Tensor::<2>::eye(4, &device);
    let batch = DecoderBatch::draw(3, images(8, &device), eye, &text(4, &device), &text(1, &device), dropout, 1000);
    let dropped = batch.drop_image.iter().filter(|&&d| d).count();
    assert!(dropped > 0 && dropped < 4, "the seed must give both cases, gave {dropped} of 4");
    let out = task.step(batch);
    let mut visitor = WithoutGradient { grads: &out.grads, path: Vec::new(), missing: Vec::new() };
    task.visit(&mut visitor);
    assert!(visitor.missing.is_empty(), "{:?}", visitor.missing);
}

#[test]
fn a_batch_is_a_function_of_its_seed() {
    let device = Device::flex();
    let (a, b, c) = (decoder_batch(9, &device), decoder_batch(9, &device), decoder_batch(10, &device));
    assert_eq!(a.images.t, b.images.t);
    a.images.noise.clone().into_data().assert_eq(&b.images.noise.into_data(), true);
    assert!((a.images.noise - c.images.noise).abs().max().into_scalar::<f32>() > 0.1);
}

#[test]
fn images_of_another_size_are_refused() {
    let device = Device::flex();
    let config = UpsamplerConfig::tiny();
    let error = UpsamplerBatch::draw(0, images(64, &device), CropOptions::default(), &config).unwrap_err().to_string();
    assert!(error.contains("64 x 64") && error.contains("128 x 128"), "{error}");
    let options = CropOptions { fraction: 0.01, ..Default::default() };
    assert!(UpsamplerBatch::draw(0, images(128, &device), options, &config).is_err());
}
