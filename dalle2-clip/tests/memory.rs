//! What gradient caching is for: a large batch in the memory of a small one.
#![allow(clippy::unwrap_used)]

use burn::prelude::*;
use dalle2_clip::train::{ClipBatch, ClipTask, ClipTaskOptions};
use dalle2_clip::{ClipConfig, TokenBatch};
use dalle2_core::train::{TrainTask, materialize};
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Words of a caption.
const WORDS: usize = 8;

/// A batch of random pairs.
fn batch(config: &ClipConfig, pairs: usize, device: &Device) -> ClipBatch {
    let side = config.vision.image_size;
    let pixels: Vec<f32> = (0..pairs * 3 * side * side).map(|i| (i as f32 * 0.37).sin()).collect();
    let ids: Vec<i64> = (0..pairs * WORDS).map(|i| (i * 31 % 90) as i64).collect();
    ClipBatch {
        pixels: Tensor::from_data(TensorData::new(pixels, [pairs, 3, side, side]), device),
        captions: TokenBatch {
            rows: Tensor::from_data(TensorData::new(ids, [pairs, WORDS]), device),
            lengths: vec![WORDS; pairs],
        },
        targets: (0..pairs).collect(),
        patches: None,
        seed: 0,
    }
}

#[test]
fn a_batch_of_512_in_parts_takes_no_more_memory_than_one_of_64() {
    let device = Device::flex().autodiff();
    let config = ClipConfig::tiny().with_vocabulary(0..100);
    // MiB that a step needs besides the batch and the model, and its loss.
    let step = |pairs: usize, chunk: Option<usize>| {
        let task = ClipTask::new(&config, &ClipTaskOptions { chunk, ..Default::default() }, &device).unwrap();
        materialize(&task, &device, 1);
        let batch = batch(&config, pairs, &device);
        let before = MEMORY.current_usage();
        MEMORY.reset_peak_usage();
        let output = task.gradients(batch, 1.0);
        let peak = MEMORY.peak_usage() - before;
        (peak as f64 / f64::from(1 << 20), output.output.loss.into_scalar::<f32>())
    };
    step(64, None); // What is set up once.
    let (small, _) = step(64, None);
    let (whole, loss) = step(512, None);
    let (parts, loss_in_parts) = step(512, Some(64));
    // Besides a part, the gradients summed so far and the embeddings of the batch: a little smaller parts make room.
    let (smaller, _) = step(512, Some(48));
    println!("64 pairs: {small:.1} MiB; 512: {whole:.1}; 512 in parts of 64: {parts:.1}, of 48: {smaller:.1}");
    assert!((loss - loss_in_parts).abs() < 1e-4, "{loss} {loss_in_parts}");
    assert!(smaller <= small, "{smaller:.1} MiB in parts of 48, {small:.1} MiB for a batch of 64");
    assert!(parts <= 1.2 * small, "{parts:.1} MiB in parts of 64, {small:.1} MiB for a batch of 64");
    assert!(whole > 5.0 * small, "the test measures nothing: {whole:.1} MiB at once");
}
