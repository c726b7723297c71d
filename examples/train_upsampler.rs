//! Trains an upsampler on crops of large images, and adds it to the pipeline directory.
//!
//! ```text
//! cargo run --release --example train_upsampler -- --preset tiny
//! ```
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

mod shared;

use std::path::Path;

use anyhow::Result;
use burn::module::Module;
use clap::Parser;
use dalle2::core::Upsampler;
use dalle2::core::diffusion::SeededNoise;
use dalle2::core::image::{RgbImage, from_tensor, resize_bicubic, to_tensor};
use dalle2::core::store::Precision;
use dalle2::core::train::{BatchSource, Hooks, TrainConfig, materialize, mix_seed};
use dalle2::decoder::train::{CropOptions, UpsamplerBatch, UpsamplerTask};
use dalle2::decoder::{DiffusionUpsampler, UpsamplerConfig};
use dalle2::{Device, SampleOptions, install_part};
use shared::cli::{Preset, TrainArgs, init_logging};
use shared::data::Data;
use shared::hooks::{go_on, save_grid};

/// Train the upsampler: four times larger images.
#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    train: TrainArgs,
}

/// Batches of crops.
struct Source {
    data: Data,
    config: UpsamplerConfig,
    batch_size: usize,
    seed: u64,
}

impl BatchSource for Source {
    type Batch = UpsamplerBatch;

    fn batch(&self, step: u64, device: &Device) -> dalle2::Result<UpsamplerBatch> {
        let items = self.data.batch(self.seed, step, self.batch_size, self.config.output_size())?;
        let images: Vec<RgbImage> = items.into_iter().map(|item| item.image).collect();
        let images = to_tensor(&images, device)?;
        UpsamplerBatch::draw(mix_seed(self.seed, 1, step), images, CropOptions::default(), &self.config)
    }
}

/// Enlarges fixed images, and exports the upsampler.
struct UpsamplerHooks<'a> {
    args: &'a TrainArgs,
    config: UpsamplerConfig,
    data: &'a Data,
    device: Device,
}

impl UpsamplerHooks<'_> {
    fn upsampler(&self, model: &UpsamplerTask) -> dalle2::Result<DiffusionUpsampler> {
        DiffusionUpsampler::new(self.config.clone(), model.network.clone())
    }
}

impl Hooks<UpsamplerTask> for UpsamplerHooks<'_> {
    fn sample(&mut self, model: &UpsamplerTask, _step: u64, path: &Path) -> dalle2::Result<()> {
        let items = self.data.plain(self.config.output_size(), 4)?;
        let originals: Vec<RgbImage> = items.iter().map(|item| item.image.clone()).collect();
        let (low_size, high_size) = (self.config.input_size, self.config.output_size());
        let low = resize_bicubic(to_tensor(&originals, &self.device)?, [low_size, low_size]).clamp(-1.0, 1.0);
        let bicubic = resize_bicubic(low.clone(), [high_size, high_size]).clamp(-1.0, 1.0);
        let seeds: Vec<u64> = (0..items.len() as u64).collect();
        let mut noise = SeededNoise::new(&seeds, 3);
        let images = self.upsampler(model)?.sample(low, &SampleOptions::default(), &mut noise, &mut go_on)?;
        let columns = [("data", originals), ("bicubic", from_tensor(bicubic)?), ("upsampler", from_tensor(images)?)];
        save_grid(path, &items, &columns)
    }

    fn export(&mut self, model: &UpsamplerTask, _dir: &Path) -> dalle2::Result<()> {
        install_part(self.args.export_dir(), "upsampler_1", &self.upsampler(model)?, Precision::F16)
    }
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let args = &cli.train;
    init_logging();
    let device = args.device()?;
    let data = Data::open(args)?;
    let (config, train) = match args.preset {
        Preset::Tiny => (UpsamplerConfig::tiny(), TrainConfig { steps: 400, ..defaults() }),
        Preset::Portable => (UpsamplerConfig::portable(), TrainConfig { steps: 400, ..defaults() }),
        Preset::Emoji => (UpsamplerConfig::emoji(), TrainConfig { steps: 3000, ..defaults() }),
    };
    let train = args.train_config(train);
    let task = UpsamplerTask::new(&config, &device.clone().autodiff())?;
    materialize(&task, &device, train.seed);
    println!("upsampler with {} parameters on {} images", task.network.num_params(), data.len());
    let source = Source { data: data.clone(), config: config.clone(), batch_size: train.batch_size, seed: train.seed };
    let mut hooks = UpsamplerHooks { args, config: config.clone(), data: &data, device: device.clone() };
    args.run("upsampler", train, &config, task, &source, &mut hooks)
}

fn defaults() -> TrainConfig {
    TrainConfig {
        batch_size: 16,
        learning_rate: 1e-3,
        warmup: 50,
        weight_decay: 0.0,
        ema_decay: Some(0.998),
        checkpoint_every: 250,
        sample_every: Some(500),
        ..Default::default()
    }
}
