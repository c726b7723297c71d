//! Trains an upsampler on crops of large images, and adds it to the pipeline directory.
//!
//! ```text
//! cargo run --release --example train_upsampler -- --preset tiny
//! cargo run --release --example train_upsampler -- --preset tiny --stage second
//! ```
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

mod shared;

use std::path::Path;

use anyhow::Result;
use burn::module::Module;
use burn::tensor::Tensor;
use clap::{Parser, ValueEnum};
use dalle2::base::Upsampler;
use dalle2::base::diffusion::SeededNoise;
use dalle2::base::image::{RgbImage, from_tensor, resize_bicubic, to_tensor};
use dalle2::decoder::degradation::BsrOptions;
use dalle2::decoder::train::{CropOptions, LowDegradation, UpsamplerBatch, UpsamplerTask};
use dalle2::decoder::{DiffusionUpsampler, UpsamplerConfig};
use dalle2::{Device, FloatType, UpsamplerOptions, install_part};
use dalle2_train::{BatchSource, Hooks, TrainConfig, materialize, mix_seed, step_rng};
use image::imageops;
use rand::RngExt;
use shared::cli::{Preset, TrainArgs, init_logging};
use shared::config::{NoOptions, RunConfig};
use shared::data::Data;
use shared::hooks::{go_on, save_grid};

/// Crops of one rendering in a batch of the second upsampler: rendering 1024 px costs more than a step of training.
const CROPS_PER_IMAGE: usize = 4;

/// Train an upsampler: four times larger images, or eight times with the second one.
#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    train: TrainArgs,
    /// Which upsampler of the cascade
    #[arg(long, value_enum, default_value = "first")]
    stage: Stage,
}

/// The upsamplers of the cascade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stage {
    /// 32 px to 128 px, learned from images that are blurred now and then.
    First,
    /// 128 px to 1024 px, learned from images with BSR degradation.
    Second,
}

impl Stage {
    /// Folder of the part.
    fn part(self) -> &'static str {
        match self {
            Self::First => "upsampler_1",
            Self::Second => "upsampler_2",
        }
    }

    /// Folder of the run.
    fn run(self) -> &'static str {
        match self {
            Self::First => "upsampler",
            Self::Second => "upsampler_2",
        }
    }

    /// Crops and what is done to the small images. The output of a first upsampler is cleaner than photographs, so the
    /// operations of BSR are rarer than by default.
    fn crops(self) -> CropOptions {
        match self {
            Self::First => CropOptions::default(),
            Self::Second => {
                let bsr = BsrOptions { probability: 0.2, ..Default::default() };
                CropOptions { fraction: 0.25, degradation: LowDegradation::Bsr(bsr) }
            }
        }
    }
}

/// Batches of crops.
struct Source {
    data: Data,
    config: UpsamplerConfig,
    stage: Stage,
    batch_size: usize,
    seed: u64,
}

impl Source {
    /// Random crops of large renderings, several of each: the second upsampler's images are too large to go through the
    /// tensor library whole.
    fn crops(&self, step: u64, device: &Device) -> dalle2::Result<Tensor<4>> {
        let size = self.config.output_size();
        let crop = self.stage.crops().side(&self.config)?;
        let mut rng = step_rng(self.seed, 2, step);
        let images = self.data.batch(self.seed, step, self.batch_size.div_ceil(CROPS_PER_IMAGE), size)?;
        let crops: Vec<RgbImage> = (0..self.batch_size)
            .map(|i| {
                let [x, y] = [0; 2].map(|_: usize| rng.random_range(0..=(size - crop) / self.config.factor));
                let [x, y] = [x, y].map(|offset| (offset * self.config.factor) as u32);
                let image = &images[i / CROPS_PER_IMAGE].image;
                imageops::crop_imm(image, x, y, crop as u32, crop as u32).to_image()
            })
            .collect();
        to_tensor(&crops, device)
    }
}

impl BatchSource for Source {
    type Batch = UpsamplerBatch;

    fn batch(&self, step: u64, device: &Device) -> dalle2::Result<UpsamplerBatch> {
        let options = self.stage.crops();
        if self.stage == Stage::Second {
            let crops = self.crops(step, device)?;
            let seed = mix_seed(self.seed, 1, step);
            return UpsamplerBatch::draw_from_crops(seed, crops, options.degradation, &self.config);
        }
        let items = self.data.batch(self.seed, step, self.batch_size, self.config.output_size())?;
        let images: Vec<RgbImage> = items.into_iter().map(|item| item.image).collect();
        let images = to_tensor(&images, device)?;
        UpsamplerBatch::draw(mix_seed(self.seed, 1, step), images, options, &self.config)
    }
}

/// Enlarges fixed images, and exports the upsampler.
struct UpsamplerHooks<'a> {
    args: &'a TrainArgs,
    stage: Stage,
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
        let count = if self.stage == Stage::First { 4 } else { 2 };
        let items = self.data.plain(self.config.output_size(), count)?;
        let originals: Vec<RgbImage> = items.iter().map(|item| item.image.clone()).collect();
        let (low_size, high_size) = (self.config.input_size, self.config.output_size());
        let low = resize_bicubic(to_tensor(&originals, &self.device)?, [low_size, low_size]).clamp(-1.0, 1.0);
        let bicubic = resize_bicubic(low.clone(), [high_size, high_size]).clamp(-1.0, 1.0);
        let seeds: Vec<u64> = (0..items.len() as u64).collect();
        let mut noise = SeededNoise::new(&seeds, 3);
        let images = self.upsampler(model)?.sample(&low, None, &UpsamplerOptions::default(), &mut noise, &mut go_on)?;
        let columns = [("data", originals), ("bicubic", from_tensor(bicubic)?), ("upsampler", from_tensor(images)?)];
        save_grid(path, &items, &columns)
    }

    fn export(&mut self, model: &UpsamplerTask, _dir: &Path) -> dalle2::Result<()> {
        install_part(self.args.export_dir(), self.stage.part(), &self.upsampler(model)?, FloatType::F16)
    }
}

fn main() -> Result<()> {
    dalle2::keep_memory();
    let cli = Cli::parse();
    let args = &cli.train;
    init_logging();
    let device = args.device()?;
    let (config, train) = match (cli.stage, args.preset) {
        (Stage::First, Preset::Tiny) => (UpsamplerConfig::tiny(), TrainConfig { steps: 400, ..defaults() }),
        (Stage::First, Preset::Portable) => (UpsamplerConfig::portable(), TrainConfig { steps: 400, ..defaults() }),
        (Stage::First, Preset::Emoji) => (UpsamplerConfig::emoji(), TrainConfig { steps: 6000, ..defaults() }),
        (Stage::Second, Preset::Portable) => {
            anyhow::bail!("a pipeline of diffusers has one upsampler: use --stage first")
        }
        (Stage::Second, Preset::Tiny) => {
            (UpsamplerConfig::emoji_1024(), TrainConfig { steps: 200, batch_size: 8, ..defaults() })
        }
        (Stage::Second, Preset::Emoji) => {
            (UpsamplerConfig::emoji_1024(), TrainConfig { steps: 2000, batch_size: 8, ..defaults() })
        }
        (Stage::First, Preset::Small) => {
            (UpsamplerConfig::small(), TrainConfig { steps: 100_000, batch_size: 64, ..paper() })
        }
        (Stage::First, Preset::Base) => (UpsamplerConfig::base(), paper()),
        (Stage::First, Preset::Karlo) => (UpsamplerConfig::karlo(), paper()),
        (Stage::First, Preset::Paper) => (UpsamplerConfig::paper_first(), paper()),
        (Stage::Second, _) => {
            (UpsamplerConfig::paper_second(), TrainConfig { batch_size: 512, learning_rate: 1.0e-4, ..paper() })
        }
    };
    let Some(run) = args.resolve(RunConfig { model: config, options: NoOptions {}, train })? else { return Ok(()) };
    let RunConfig { model: config, train, .. } = &run;
    let data = Data::open(args)?;
    let task = UpsamplerTask::new(config, &args.training_device()?)?;
    materialize(&task, &device, train.seed);
    println!("upsampler with {} parameters on {} images", task.network.num_params(), data.len());
    let source = Source {
        data: data.clone(),
        config: config.clone(),
        stage: cli.stage,
        batch_size: train.batch_size,
        seed: train.seed,
    };
    let mut hooks =
        UpsamplerHooks { args, stage: cli.stage, config: config.clone(), data: &data, device: device.clone() };
    args.run(cli.stage.run(), &run, task, source, &mut hooks)
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

/// The paper's (table 3).
fn paper() -> TrainConfig {
    TrainConfig {
        steps: 1_000_000,
        batch_size: 1024,
        learning_rate: 1.2e-4,
        ema_decay: Some(0.9999),
        checkpoint_every: 1000,
        sample_every: Some(5000),
        ..defaults()
    }
}
