//! The estimated memory of training against the memory that a step allocates.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use burn::prelude::*;
use dalle2::base::{TextCondition, TokenMask};
use dalle2::clip::train::{ClipBatch, ClipTask, ClipTaskOptions};
use dalle2::clip::{ClipConfig, TokenBatch};
use dalle2::decoder::train::{ConditionDropout, CropOptions, DecoderBatch, DecoderTask, UpsamplerBatch, UpsamplerTask};
use dalle2::decoder::{DecoderConfig, UpsamplerConfig};
use dalle2::prior::DiffusionPriorConfig;
use dalle2::prior::train::{PriorBatch, PriorTask};
use dalle2_train::{MemoryEstimate, TrainConfig, TrainTask, materialize};
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const D: usize = 64;
const S: usize = 32;

fn values<const N: usize>(shape: [usize; N], device: &Device) -> Tensor<N> {
    let values: Vec<f32> = (0..shape.iter().product()).map(|i: usize| (i as f32 * 0.37).sin()).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn text(count: usize, device: &Device) -> TextCondition {
    TextCondition {
        pooled: values([count, D], device),
        tokens: values([count, S, D], device),
        mask: TokenMask::from_lengths(&vec![S; count], S, device),
    }
}

/// Most bytes that a step allocates at once, without the model, the batch and the gradients that are left.
fn measured<M: TrainTask>(task: &M, batch: impl Fn() -> M::Batch) -> f64 {
    materialize(task, &device(), 0);
    drop(task.gradients(batch(), 1.0)); // What is set up once.
    let batch = batch();
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    drop(task.gradients(batch, 1.0));
    (MEMORY.peak_usage() - before) as f64
}

fn device() -> Device {
    Device::flex().autodiff()
}

/// The estimate may be off by a third: it leaves out what lives for one operation only.
#[track_caller]
fn assert_close(name: &str, activations: u64, items: usize, parameters: usize, measured: f64) {
    let estimate = MemoryEstimate::new(parameters as u64, activations, items as u64, &TrainConfig::default());
    assert_eq!(estimate.states, 20 * parameters as u64, "weights, gradients, two moments and the average");
    // The gradients are allocated in the step, too, as the activations are freed.
    let ratio = measured / estimate.activations as f64;
    println!("{name}: {:.1} MiB measured, {ratio:.2} of the estimate", measured / f64::from(1 << 20));
    assert!((0.75..1.35).contains(&ratio), "{name}: {ratio:.2} of the estimate");
}

#[test]
fn the_estimates_are_near_what_a_step_allocates() {
    let device = device();
    let clip = ClipConfig::tiny().with_vocabulary(0..100);
    let task = ClipTask::new(&clip, &ClipTaskOptions::default(), &device).unwrap();
    let batch = || ClipBatch {
        pixels: values([32, 3, 32, 32], &device),
        captions: TokenBatch { rows: Tensor::ones([32, S], &device), lengths: vec![S; 32] },
        targets: (0..32).collect(),
        patches: None,
        seed: 0,
    };
    let activations = clip.kept_per_pair(clip.vision.n_patches());
    assert_close("CLIP", activations, 32, clip.num_params(), measured(&task, batch));

    let prior = DiffusionPriorConfig::tiny(D, D, S);
    let task = PriorTask::new(&prior, &device).unwrap();
    let batch = || PriorBatch::draw(0, &text(32, &device), &text(1, &device), values([32, D], &device), 0.1, 1000);
    assert_close("prior", prior.kept_per_pair(), 32, prior.num_params(), measured(&task, batch));

    for (name, decoder) in [("decoder", DecoderConfig::tiny(D, D)), ("64 px decoder", wide())] {
        let task = DecoderTask::new(&decoder, &device).unwrap();
        let size = decoder.image_size;
        let batch = || {
            let (images, embedding) = (values([4, 3, size, size], &device), values([4, D], &device));
            let (captions, null) = (text(4, &device), text(1, &device));
            DecoderBatch::draw(0, images, embedding, &captions, &null, ConditionDropout::default(), 1000)
        };
        let parameters = decoder.num_params().unwrap();
        assert_close(name, decoder.kept_per_image(S), 4, parameters, measured(&task, batch));
    }

    // Enough crops for the activations to be more than the gradients, which are counted with the states.
    let upsampler = UpsamplerConfig::tiny();
    let task = UpsamplerTask::new(&upsampler, &device).unwrap();
    let (size, options) = (upsampler.output_size(), CropOptions::default());
    let batch = || UpsamplerBatch::draw(0, values([64, 3, size, size], &device), options, &upsampler).unwrap();
    let parameters = upsampler.num_params().unwrap();
    assert_close("upsampler", upsampler.kept_per_crop(&options), 64, parameters, measured(&task, batch));
}

/// The small decoder with fewer channels.
fn wide() -> DecoderConfig {
    let mut config = DecoderConfig::small(D, D);
    config.unet.channels = vec![32, 64, 64, 96];
    config.unet.head_dim = 16;
    config.unet.context_dim = Some(32);
    config.unet.n_groups = 8;
    config
}
