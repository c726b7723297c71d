//! Training steps of decoder and upsampler, by overfitting.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use burn::module::{ModuleVisitor, Param};
use burn::optim::{AdamConfig, GradientsParams};
use burn::prelude::*;
use dalle2_core::diffusion::LossWeight;
use dalle2_core::train::TrainTask;
use dalle2_core::{TextCondition, TokenMask};
use dalle2_decoder::degradation::BsrOptions;
use dalle2_decoder::train::{
    ConditionDropout, CropOptions, DecoderBatch, DecoderTask, LowDegradation, UpsamplerBatch, UpsamplerTask,
};
use dalle2_decoder::{CaptionEncoderConfig, DecoderConfig, NoiseLevel, UpsamplerConfig};

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
    let mse = |task: &DecoderTask| task.loss_terms(decoder_batch(0, &device)).mse.into_scalar::<f32>();
    let before = mse(&task);
    for _ in 0..300 {
        let out = task.gradients(decoder_batch(0, &device), 1.0);
        task = optim.step(3e-3, task, out.grads);
    }
    let after = mse(&task);
    assert!(before > 0.5, "a fresh network predicts zero, so its error is the target's variance: {before}");
    assert!(after < 0.05, "mean squared error {before} -> {after}");
}

#[test]
fn the_first_upsampler_overfits_one_batch() {
    // Images of one colour, which it predicts whole: enlargement lacks nothing of them.
    let mut config = UpsamplerConfig { residual: false, input_size: 4, ..UpsamplerConfig::tiny() };
    config.unet.patch = 2;
    config.unet.channels = vec![16, 32];
    config.unet.n_groups = 8;
    let (before, after) = overfit(&config, CropOptions { fraction: 0.5, ..Default::default() }, images);
    assert!(before > 0.3, "{before}");
    assert!(after < 0.05, "mean squared error {before} -> {after}");
}

#[test]
fn the_second_upsampler_overfits_one_batch() {
    let mut config = UpsamplerConfig::emoji_1024();
    config.input_size = 2;
    config.unet.patch = 4;
    config.unet.channels = vec![16, 32];
    config.unet.n_groups = 8;
    let degradation = LowDegradation::Bsr(BsrOptions { probability: 0.2, ..Default::default() });
    // It predicts what enlargement lacks, which is nothing for images of one colour: these have squares of 2 × 2 pixels.
    let squares = |size: usize, device: &Device| {
        let dark: Vec<f32> = (0..size * size).map(|i| ((i / size / 2 + i % size / 2) % 2) as f32).collect();
        images(size, device) * Tensor::from_data(TensorData::new(dark, [1, 1, size, size]), device)
    };
    let (before, after) = overfit(&config, CropOptions { fraction: 0.5, degradation }, squares);
    assert!(before > 0.1, "{before}");
    assert!(after < 0.02, "mean squared error {before} -> {after}");
}

/// Mean squared error on one batch of crops of these images, before and after learning it.
fn overfit(config: &UpsamplerConfig, options: CropOptions, images: impl Fn(usize, &Device) -> Tensor<4>) -> (f32, f32) {
    let device = Device::flex().autodiff();
    device.seed(2);
    let mut task = UpsamplerTask::new(config, &device).unwrap();
    let mut optim = AdamConfig::new().with_epsilon(1e-8).init();
    let batch = |seed| UpsamplerBatch::draw(seed, images(16, &device), options, config).unwrap();
    assert_eq!(batch(0).low.dims(), [4, 3, 8, 8]);
    let mse = |task: &UpsamplerTask| task.loss_terms(batch(0)).mse.into_scalar::<f32>();
    let before = mse(&task);
    for _ in 0..300 {
        let out = task.gradients(batch(0), 1.0);
        task = optim.step(3e-3, task, out.grads);
    }
    (before, mse(&task))
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
    let out = task.gradients(batch, 1.0);
    let mut visitor = WithoutGradient { grads: &out.grads, path: Vec::new(), missing: Vec::new() };
    task.visit(&mut visitor);
    assert!(visitor.missing.is_empty(), "{:?}", visitor.missing);
}

/// Loss and gradients of a network's parameters, on a device of this kind.
fn loss_and_gradients(device: &Device) -> (f32, Vec<Vec<f32>>) {
    struct Gradients<'a>(&'a GradientsParams, Vec<Vec<f32>>);
    impl ModuleVisitor for Gradients<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.1.push(self.0.get::<D>(param.id).unwrap().into_data().try_to_vec::<f32>().unwrap());
        }
    }
    device.seed(4);
    let task = DecoderTask::new(&decoder_config(), device).unwrap();
    let loss = task.loss_terms(decoder_batch(3, device)).total;
    let value = loss.clone().into_scalar::<f32>();
    let grads = GradientsParams::from_grads(loss.backward(), &task);
    let mut gradients = Gradients(&grads, Vec::new());
    task.network.unet.visit(&mut gradients);
    (value, gradients.1)
}

#[test]
fn gradient_checkpointing_changes_no_gradient() {
    let (loss, plain) = loss_and_gradients(&Device::flex().autodiff());
    let (again, recomputed) = loss_and_gradients(&Device::flex().autodiff().gradient_checkpointing());
    assert_eq!(loss, again);
    assert!(plain.len() > 50 && plain.iter().flatten().any(|g| *g != 0.0));
    assert_eq!(plain, recomputed);
}

#[test]
fn weighted_losses_are_the_mean_of_weighted_errors() {
    let device = Device::flex();
    let mut config = decoder_config();
    let schedule = config.diffusion.noise_schedule().unwrap();
    let batch = decoder_batch(5, &device).images;
    let out = Tensor::<4>::zeros([4, 6, 8, 8], &device);
    let plain = batch.clone().loss(out.clone(), &config.diffusion, &schedule);
    for weight in [LossWeight::MinSnr { gamma: 5.0 }, LossWeight::P2 { k: 1.0, gamma: 1.0 }] {
        config.diffusion.loss_weight = Some(weight);
        let loss = batch.clone().loss(out.clone(), &config.diffusion, &schedule);
        let factors = weight.weights(&schedule, config.diffusion.prediction, &batch.t);
        let target =
            config.diffusion.prediction.target(&schedule, batch.x_start.clone(), batch.noise.clone(), &batch.t);
        let errors = target.square().reshape([4, 192]).mean_dim(1).into_data().try_to_vec::<f32>().unwrap();
        let simple: f32 = errors.iter().zip(factors).map(|(e, w)| e * w).sum::<f32>() / 4.0;
        let vlb = loss.vlb.unwrap().into_scalar::<f32>();
        let total = loss.total.into_scalar::<f32>();
        assert!((total - simple - vlb).abs() < 1e-4 * total, "{total} is not {simple} + {vlb}");
        let mse = loss.mse.into_scalar::<f32>();
        assert!((mse - plain.mse.clone().into_scalar::<f32>()).abs() < 1e-6, "the reported error is not weighted");
    }
}

#[test]
fn a_decoder_learns_to_inpaint_from_where_it_was() {
    let device = Device::flex().autodiff();
    device.seed(7);
    let mut task = DecoderTask::new(&decoder_config(), &device).unwrap();
    let mut optim = AdamConfig::new().with_epsilon(1e-8).init();
    for _ in 0..40 {
        let out = task.gradients(decoder_batch(0, &device), 1.0);
        task = optim.step(3e-3, task, out.grads);
    }
    let before = task.loss_terms(decoder_batch(0, &device)).mse.into_scalar::<f32>();
    let config = decoder_config().with_inpainting();
    let network = task.network.valid().train();
    let mut task = DecoderTask::with_network(&config, network).unwrap();
    let masked = || decoder_batch(0, &device).with_masks(9);
    let start = task.loss_terms(masked()).mse.into_scalar::<f32>();
    assert!((start - before).abs() < 1e-5, "new channels are ignored at first: {before} and {start}");
    let mut optim = AdamConfig::new().with_epsilon(1e-8).init();
    for _ in 0..60 {
        let out = task.gradients(masked(), 1.0);
        task = optim.step(3e-3, task, out.grads);
    }
    let after = task.loss_terms(masked()).mse.into_scalar::<f32>();
    let blind = task.loss_terms(decoder_batch(0, &device)).mse.into_scalar::<f32>();
    assert!(after < before && after < blind, "{before} -> {after}, and {blind} without the known pixels");
}

#[test]
fn self_conditioning_and_a_caption_encoder_train() {
    let device = Device::flex().autodiff();
    let mut config = decoder_config().with_self_conditioning();
    config.caption_encoder =
        Some(CaptionEncoderConfig { vocab_size: 30, context_length: 4, d_model: 16, n_heads: 2, n_layers: 1 });
    let task = DecoderTask::new(&config, &device).unwrap();
    let ids = Tensor::<2, Int>::from_ints([[1, 5, 2], [1, 6, 2], [1, 7, 2], [1, 8, 2]], &device);
    for first in [false, true] {
        let mut batch = decoder_batch(3, &device);
        batch.text.mask = batch.text.mask.with_ids(ids.clone());
        batch.estimate_first = first;
        let out = task.gradients(batch, 1.0);
        let mut visitor = WithoutGradient { grads: &out.grads, path: Vec::new(), missing: Vec::new() };
        task.visit(&mut visitor);
        assert!(visitor.missing.is_empty(), "{:?}", visitor.missing);
    }
}

#[test]
fn the_first_loss_of_a_residual_upsampler_is_the_error_of_bicubic_enlargement() {
    let device = Device::flex().autodiff();
    let mut config = UpsamplerConfig::tiny();
    config.input_size = 8;
    let pictures = Tensor::<4>::random([2, 3, 32, 32], burn::tensor::Distribution::Uniform(-1.0, 1.0), &device);
    let batch =
        UpsamplerBatch::draw(1, pictures, CropOptions { fraction: 0.5, ..Default::default() }, &config).unwrap();
    let error = (batch.low.clone() - batch.images.x_start.clone()).square().mean().into_scalar::<f32>();
    let loss = UpsamplerTask::new(&config, &device).unwrap().loss_terms(batch).mse.into_scalar::<f32>();
    assert!((loss - error).abs() < 1e-6 * error, "{loss} is not {error}");
}

#[test]
fn bsr_batches_are_functions_of_their_seed_and_differ_from_clean_ones() {
    let device = Device::flex();
    let mut config = UpsamplerConfig::tiny();
    config.input_size = 8;
    config.noise_level = Some(NoiseLevel { train_max: 0.2, sampling: 0.0 });
    config.unet.in_channels = config.in_channels();
    let pictures = Tensor::<4>::random([2, 3, 32, 32], burn::tensor::Distribution::Uniform(-1.0, 1.0), &device);
    let draw = |degradation, seed| {
        let options = CropOptions { fraction: 0.5, degradation };
        UpsamplerBatch::draw(seed, pictures.clone(), options, &config).unwrap()
    };
    let bsr = LowDegradation::Bsr(BsrOptions { probability: 1.0, ..Default::default() });
    let (a, b, clean) = (draw(bsr, 1), draw(bsr, 1), draw(LowDegradation::None, 1));
    assert_eq!(a.low.dims(), [2, 4, 16, 16]);
    a.low.clone().into_data().assert_eq(&b.low.into_data(), true);
    assert!((a.low - clean.low).abs().max().into_scalar::<f32>() > 0.05);
    a.images.x_start.into_data().assert_eq(&clean.images.x_start.into_data(), true);
    let crops = UpsamplerBatch::draw_from_crops(1, pictures.clone(), bsr, &config).unwrap();
    assert_eq!(crops.images.x_start.dims(), [2, 3, 32, 32]);
    let odd = pictures.slice_dim(2, 0..28);
    assert!(UpsamplerBatch::draw_from_crops(1, odd, bsr, &config).is_err());
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
