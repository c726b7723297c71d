//! Images per second of the data loader (read, decode, resize to 64 px) and of training the decoder preset `small`.
//!
//! ```text
//! cargo bench --bench loader
//! ```
//!
//! The shards are generated for the run. The network's time is a forward and a backward pass without the optimizer.
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

#[path = "../../dalle2-cli/src/webdataset.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod webdataset;

use std::time::Instant;

use anyhow::Result;
use burn::tensor::{Distribution, Tensor};
use dalle2::Device;
use dalle2::base::image::{fit_square, to_tensor};
use dalle2::base::{TextCondition, TokenMask};
use dalle2::decoder::DecoderConfig;
use dalle2::decoder::train::{ConditionDropout, DecoderBatch, DecoderTask};
use dalle2_train::TrainTask;
use dalle2_train::data::{DataSpec, Decoders, Mixture};
use webdataset::{Recipe, write_webdataset};

/// Side of the decoder's images.
const SIDE: usize = 64;
/// Samples in the shards.
const SAMPLES: usize = 1024;
/// Batch size of the loader and of the network.
const BATCHES: [usize; 2] = [64, 4];
/// Measured steps of the network, after one warm-up step.
const STEPS: usize = 3;
/// Embedding width, token width and number of tokens of CLIP ViT-L/14.
const CLIP: [usize; 3] = [768, 768, 77];

fn main() -> Result<()> {
    let device = dalle2::device("default")?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut slowest = f64::INFINITY;
    println!("{:44} {:>12}", format!("loader, {threads} threads, to {SIDE} px"), "images/s");
    for side in [256, 512] {
        for compressed in [false, true] {
            let speed = loader(side, compressed, threads, &device)?;
            slowest = slowest.min(speed);
            let form = if compressed { "tar.gz" } else { "tar" };
            println!("{:44} {speed:12.1}", format!("JPEG of {side} px in {form}"));
        }
    }
    let speed = network(&device)?;
    println!("{:44} {speed:12.3}", format!("decoder `small`, batches of {}", BATCHES[1]));
    println!("{:44} {:12.0}", "slowest loader / decoder", slowest / speed);
    Ok(())
}

/// Returns the images per second over one epoch in training order.
fn loader(side: u32, compressed: bool, threads: usize, device: &Device) -> Result<f64> {
    let dir = tempfile::tempdir()?;
    let recipe = Recipe { samples: SAMPLES, shard_size: 256, side, broken_every: 0, compressed, seed: 0 };
    write_webdataset(dir.path(), &recipe)?;
    let end = if compressed { "tar.gz" } else { "tar" };
    let spec: DataSpec = format!("{}/*.{end}", dir.path().display()).parse()?;
    let mixture = Mixture::open(0, &[spec])?;
    let decoders = Decoders::new(threads)?;
    let start = Instant::now();
    for step in 0..(SAMPLES / BATCHES[0]) as u64 {
        let prepare = |_, _, item: dalle2_train::data::CaptionedImage| Ok(fit_square(&item.image, SIDE as u32));
        let images = decoders.batch(&mixture, step, BATCHES[0], prepare)?;
        to_tensor(&images, device)?;
    }
    Ok(SAMPLES as f64 / start.elapsed().as_secs_f64())
}

/// Returns the images per second of a training step.
fn network(device: &Device) -> Result<f64> {
    let config = DecoderConfig::small(CLIP[0], CLIP[1]);
    let device = device.clone().autodiff();
    let task = DecoderTask::new(&config, &device)?;
    let random = |dims: [usize; 2]| Tensor::<2>::random(dims, Distribution::Normal(0.0, 1.0), &device);
    let [d, w, s] = CLIP;
    let text = |batch: usize| TextCondition {
        pooled: random([batch, d]),
        tokens: random([batch * s, w]).reshape([batch, s, w]),
        mask: TokenMask::from_lengths(&vec![12; batch], s, &device),
    };
    let mut seconds = Vec::new();
    for step in 0..=STEPS as u64 {
        let b = BATCHES[1];
        let images = random([b * 3 * SIDE, SIDE]).clamp(-1.0, 1.0).reshape([b, 3, SIDE, SIDE]);
        let dropout = ConditionDropout::default();
        let steps = config.diffusion.train_steps;
        let batch = DecoderBatch::draw(step, images, random([b, d]), &text(b), &text(1), dropout, steps);
        let start = Instant::now();
        let output = task.gradients(batch, 1.0);
        device.sync().map_err(|e| anyhow::anyhow!("{e:?}"))?;
        drop(output);
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.remove(0);
    seconds.sort_by(f64::total_cmp);
    Ok(BATCHES[1] as f64 / seconds[STEPS / 2])
}
