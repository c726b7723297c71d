//! Training of the decoder and the upsamplers: the steps that `dalle2_core::train` repeats, and the batches they take.
//!
//! Everything random in a batch (timesteps, noise, dropped conditions, crops) comes from the seed it is drawn with, so
//! a batch is a pure function of (seed, step).

mod decoder;
mod mask;
mod memory;
mod upsampler;

pub use decoder::{ConditionDropout, DecoderBatch, DecoderTask};
pub use mask::MaskShape;
pub use upsampler::{CropOptions, LowDegradation, UpsamplerBatch, UpsamplerTask};

use burn::prelude::*;
use dalle2_core::diffusion::{Known, stratified_timesteps};
use dalle2_core::train::{StepOutput, mix_seed};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

use crate::{DiffusionLoss, Noised};

/// Timesteps and noise for a batch of clean images.
fn noised(rng: &mut ChaCha8Rng, x_start: Tensor<4>, train_steps: usize) -> Noised {
    let [b, c, h, w] = x_start.dims();
    let t = stratified_timesteps(rng, b, train_steps);
    let values: Vec<f32> = (0..b * c * h * w).map(|_| rng.sample(StandardNormal)).collect();
    let noise = Tensor::from_data(TensorData::new(values, [b, c, h, w]), &x_start.device());
    Noised { x_start, noise, t }
}

/// Random masks over a batch of images, which are known where a mask does not edit them.
fn masked(seed: u64, x_start: &Tensor<4>) -> Known<4> {
    // A stream of its own, so that masks change nothing else of a batch.
    let mut rng = rng(mix_seed(seed, 0x6d61_736b, 0));
    let [b, _, size, _] = x_start.dims();
    let device = x_start.device();
    let masks = (0..b).map(|_| {
        let shape = MaskShape::draw(&mut rng);
        shape.mask(size, &mut rng).keep_tensor(&device)
    });
    Known { keep: Tensor::cat(masks.collect(), 0), x_start: x_start.clone() }
}

fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

fn output(loss: DiffusionLoss) -> StepOutput {
    let output = StepOutput::new(loss.total).with("mse", loss.mse);
    match loss.vlb {
        Some(vlb) => output.with("vlb", vlb),
        None => output,
    }
}
