//! Checks for memory growth over 2,000 training steps of a small decoder and 200 generations with the bundled model.
//!
//! Fails if the resident size grows by more than 2 % after the warm-up.
//!
//! ```text
//! cargo bench --bench soak
//! ```
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

use burn::prelude::{Device, Tensor, TensorData};
use dalle2::base::diffusion::standard_normal;
use dalle2::base::{TextCondition, TokenMask};
use dalle2::decoder::DecoderConfig;
use dalle2::decoder::train::{ConditionDropout, DecoderBatch, DecoderTask};
use dalle2::{GenerateRequest, Pipeline};
use dalle2_train::{BatchSource, DisplayMode, RunOptions, TrainConfig, Trainer, materialize, read_metrics, step_rng};

/// Measured steps and generations, and the warm-up before each.
const STEPS: u64 = 2000;
const WARM_UP_STEPS: u64 = 600;
const GENERATIONS: u64 = 200;
const WARM_UP_GENERATIONS: u64 = 20;
/// Number of printed points per curve.
const PRINTED: usize = 10;
/// Maximum relative growth from the first tenth to the last.
const GROWTH: f64 = 0.02;
/// Width of embeddings and tokens.
const WIDTH: usize = 64;
/// Tokens of a caption.
const TOKENS: usize = 8;

/// Random images with random conditions, different in every step.
struct Random {
    config: DecoderConfig,
}

impl BatchSource for Random {
    type Batch = DecoderBatch;

    fn batch(&self, step: u64, device: &Device) -> dalle2::Result<DecoderBatch> {
        let mut rng = step_rng(0, 0, step);
        let mut values = |n: usize| standard_normal(&mut rng, n);
        let size = self.config.image_size;
        let images = Tensor::<4>::from_data(TensorData::new(values(4 * 3 * size * size), [4, 3, size, size]), device);
        let embedding = Tensor::from_data(TensorData::new(values(4 * WIDTH), [4, WIDTH]), device);
        let mut text = |count: usize| TextCondition {
            pooled: Tensor::from_data(TensorData::new(values(count * WIDTH), [count, WIDTH]), device),
            tokens: Tensor::from_data(TensorData::new(values(count * TOKENS * WIDTH), [count, TOKENS, WIDTH]), device),
            mask: TokenMask::from_lengths(&vec![TOKENS - (step % 3) as usize; count], TOKENS, device),
        };
        let (captions, null) = (text(4), text(1));
        let images = images.clamp(-1.0, 1.0);
        Ok(DecoderBatch::draw(step, images, embedding, &captions, &null, ConditionDropout::default(), 1000))
    }
}

fn training() -> Result<Vec<f64>, Box<dyn std::error::Error>> {
    let mut config = DecoderConfig::tiny(WIDTH, WIDTH);
    config.image_size = 16;
    (config.unet.channels, config.unet.context_dim) = (vec![16, 32], Some(16));
    (config.unet.n_groups, config.unet.head_dim) = (8, 16);
    let device = Device::flex().autodiff();
    let task = DecoderTask::new(&config, &device)?;
    materialize(&task, &device, 0);
    let train =
        TrainConfig { steps: WARM_UP_STEPS + STEPS, batch_size: 4, checkpoint_every: 250, ..Default::default() };
    let dir = tempfile::tempdir()?;
    let options = RunOptions { display: DisplayMode::Quiet, ..Default::default() };
    Trainer::new(train, dir.path()).options(options).run(task, &Random { config }, &mut ())?;
    let steps = read_metrics(dir.path().join("metrics.jsonl"))?;
    Ok(steps.iter().skip(WARM_UP_STEPS as usize).filter_map(|step| step.memory_mib).collect())
}

fn generations() -> Result<Vec<f64>, Box<dyn std::error::Error>> {
    let pipeline = Pipeline::from_pretrained(
        concat!(env!("CARGO_MANIFEST_DIR"), "/../models/emoji"),
        &dalle2::device("default")?,
    )?;
    let captions = ["red apple", "blue car", "a cat with a hat", "the sun"];
    let mut memory = Vec::new();
    for seed in 0..WARM_UP_GENERATIONS + GENERATIONS {
        let caption = captions[(seed % 4) as usize];
        let request = GenerateRequest::new(caption).seed(seed).prior_steps(2).decoder_steps(2).upsampler_steps(1);
        pipeline.generate(request)?;
        memory.extend(memory_stats::memory_stats().map(|memory| memory.physical_mem as f64 / f64::from(1 << 20)));
    }
    Ok(memory.into_iter().skip(WARM_UP_GENERATIONS as usize).collect())
}

/// Prints a curve and returns its relative growth.
fn show(name: &str, unit: &str, memory: &[f64]) -> f64 {
    let tenth = memory.len() / PRINTED;
    let means: Vec<f64> = memory.chunks_exact(tenth).map(|part| part.iter().sum::<f64>() / tenth as f64).collect();
    println!("{name}: resident MiB, means over {tenth} {unit}");
    for (i, mean) in means.iter().enumerate() {
        println!("{:>6} {mean:9.1}", (i + 1) * tenth);
    }
    let growth = means[means.len() - 1] / means[0] - 1.0;
    println!("growth from the first to the last tenth: {:.2} %", 100.0 * growth);
    growth
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    dalle2::keep_memory();
    let (training, generations) = (training()?, generations()?);
    if training.is_empty() || generations.is_empty() {
        println!("the resident size of a process is not available on this system");
        return Ok(());
    }
    let growth = [show("training", "steps", &training), show("generating", "images", &generations)];
    if growth.iter().any(|growth| *growth > GROWTH) {
        return Err(format!("memory grows by more than {:.0} %", 100.0 * GROWTH).into());
    }
    Ok(())
}
