//! Seconds of a prior of the preset `small` for a batch of four captions.
//!
//! ```text
//! cargo bench --bench priors
//! ```
//!
//! Weights are random; the time does not depend on them. Captions and embeddings have the sizes of the bundled CLIP.
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

use std::time::Instant;

use burn::tensor::{Distribution, Tensor};
use dalle2::base::diffusion::SeededNoise;
use dalle2::base::{Captions, Prior, PriorOptions, TextCondition, TokenMask};
use dalle2::prior::{
    AutoregressivePrior, AutoregressivePriorConfig, DiffusionPrior, DiffusionPriorConfig, EmbeddingQuantizer,
    QuantizerOptions,
};
use dalle2::{Device, Result};

/// Captions in a batch.
const BATCH: usize = 4;
/// Measured runs, after one warm-up run.
const RUNS: usize = 7;
/// Embedding width, token width and number of caption tokens.
const SIZES: [usize; 3] = [128, 128, 32];

fn main() -> Result<()> {
    dalle2::keep_memory();
    let device = dalle2::device("default")?;
    let diffusion = diffusion(&device)?;
    let autoregressive = autoregressive(&device)?;
    println!("{:42} {:>9} {:>9}", format!("batch of {BATCH}, median of {RUNS}"), "one", "best of 2");
    report("diffusion, 25 steps", &diffusion, PriorOptions { steps: Some(25), ..Default::default() }, &device)?;
    report("autoregressive, 64 components", &autoregressive, PriorOptions::default(), &device)
}

fn diffusion(device: &Device) -> Result<DiffusionPrior> {
    let config = DiffusionPriorConfig::small(SIZES[0], SIZES[1], SIZES[2]);
    DiffusionPrior::new(config.clone(), config.init(device))
}

fn autoregressive(device: &Device) -> Result<AutoregressivePrior> {
    let config = AutoregressivePriorConfig::small(SIZES[0], SIZES[1], SIZES[2]);
    let random = || Tensor::random([512, SIZES[0]], Distribution::Normal(0.0, 1.0), device);
    let quantizer = EmbeddingQuantizer::fit(random(), random(), &QuantizerOptions::of(&config))?;
    AutoregressivePrior::new(config.clone(), config.init(device), quantizer)
}

fn text(batch: usize, device: &Device) -> TextCondition {
    let [d, w, s] = SIZES;
    TextCondition {
        pooled: Tensor::random([batch, d], Distribution::Normal(0.0, 1.0), device),
        tokens: Tensor::random([batch, s, w], Distribution::Normal(0.0, 1.0), device),
        mask: TokenMask::from_lengths(&vec![8; batch], s, device),
    }
}

/// Prints the seconds with one and with two candidates, with guidance.
fn report(name: &str, prior: &dyn Prior, options: PriorOptions, device: &Device) -> Result<()> {
    let (text, null) = (text(BATCH, device), text(1, device));
    let mut medians = Vec::new();
    for candidates in [1, 2] {
        let options = PriorOptions { candidates: Some(candidates), guidance: Some(2.0), ..options.clone() };
        let mut seconds = Vec::new();
        for run in 0..=RUNS as u64 {
            let mut noise = SeededNoise::consecutive(run, BATCH, 1);
            let start = Instant::now();
            let z = prior.sample(Captions { text: &text, null: &null }, &options, &mut noise, &mut |_| Ok(()))?;
            z.into_data();
            seconds.push(start.elapsed().as_secs_f64());
        }
        seconds.remove(0);
        seconds.sort_by(f64::total_cmp);
        medians.push(seconds[RUNS / 2]);
    }
    println!("{name:42} {:7.3} s {:7.3} s", medians[0], medians[1]);
    Ok(())
}
