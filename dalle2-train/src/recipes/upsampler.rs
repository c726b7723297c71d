//! The recipe for the upsamplers of the cascade, trained on crops of large images.

use std::path::Path;
use std::sync::Arc;

use burn::prelude::*;
use dalle2_core::diffusion::SeededNoise;
use dalle2_core::image::{RgbImage, from_tensor, resize_bicubic, to_tensor};
use dalle2_core::store::PipelineDir;
use dalle2_core::{ConfigError, FloatType, Result, Upsampler, UpsamplerOptions};
use dalle2_decoder::degradation::BsrOptions;
use dalle2_decoder::train::{CropOptions, LowDegradation, UpsamplerBatch, UpsamplerTask};
use dalle2_decoder::{DiffusionUpsampler, UpsamplerConfig};
use image::imageops;
use rand::RngExt;

use super::args::{Outcome, Preset, RecipeArgs};
use super::config::{NoOptions, RunConfig};
use super::data::{TrainData, spread_items};
use super::run::{Inputs, run};
use super::samples::{continue_sampling, save_grid};
use crate::{BatchSource, Hooks, TrainConfig, materialize, mix_seed, step_rng};

/// Crops per image in a batch of the second upsampler: reading an image of 1024 px costs more than a training step.
const CROPS_PER_IMAGE: usize = 4;

/// The upsamplers of the cascade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum UpsamplerStage {
    /// 32 px to 128 px, trained on images that are sometimes blurred.
    #[default]
    First,
    /// 128 px to 1024 px, trained on images with BSR degradation.
    Second,
}

impl UpsamplerStage {
    /// Folder of the part in the pipeline.
    fn part(self) -> &'static str {
        match self {
            Self::First => "upsampler_1",
            Self::Second => "upsampler_2",
        }
    }

    /// Folder of the run.
    fn run_folder(self) -> &'static str {
        match self {
            Self::First => "upsampler",
            Self::Second => "upsampler_2",
        }
    }

    /// Crops and degradation of the low-resolution images. The output of a first upsampler is cleaner than photographs,
    /// so the operations of BSR are rarer than by default.
    fn crops(self) -> CropOptions {
        match self {
            Self::First => CropOptions::default(),
            Self::Second => {
                let bsr = BsrOptions { probability: 0.2, ..Default::default() };
                CropOptions { fraction: 0.25, degradation: LowDegradation::Bsr(bsr) }
            }
        }
    }

    /// Images in a sample grid.
    fn grid_size(self) -> usize {
        match self {
            Self::First => 4,
            Self::Second => 2,
        }
    }
}

/// Trains an upsampler and installs it.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Arguments of all recipes.
    pub args: RecipeArgs,
    /// The upsampler of the cascade.
    pub stage: UpsamplerStage,
}

impl Recipe {
    /// Creates the recipe for the first upsampler.
    pub fn new(args: RecipeArgs) -> Self {
        Self { args, stage: UpsamplerStage::First }
    }

    /// Trains on `data`, or describes the run.
    ///
    /// # Errors
    /// If the configuration is not valid, the data cannot be read, or as [`Trainer::run`](crate::Trainer::run).
    pub fn run(&self, data: Arc<dyn TrainData>) -> Result<Outcome> {
        let config = self.args.resolve(self.preset()?)?;
        if self.args.dry_run {
            return self.args.describe(&config);
        }
        let RunConfig { model, train, .. } = &config;
        let device = self.args.main_device()?;
        let task = UpsamplerTask::new(model, &self.args.training_device()?)?;
        materialize(&task, &device, train.seed);
        tracing::info!("upsampler with {} parameters on {} images", task.network.num_params(), data.len());
        let source = Source {
            data: data.clone(),
            config: model.clone(),
            stage: self.stage,
            batch_size: train.batch_size,
            seed: train.seed,
        };
        let hooks = UpsamplerHooks { stage: self.stage, config: model.clone(), data, device };
        let inputs = Inputs { source: Box::new(source), hooks: Box::new(hooks) };
        run(&self.args, self.stage.run_folder(), &config, task, inputs)
    }

    /// Returns the preset's configuration.
    ///
    /// # Errors
    /// If the preset lacks this upsampler.
    pub fn preset(&self) -> Result<RunConfig<UpsamplerConfig>, ConfigError> {
        use UpsamplerStage::{First, Second};
        let short = |steps| TrainConfig { steps, ..small() };
        let (model, train) = match (self.stage, self.args.preset) {
            (First, Preset::Tiny) => (UpsamplerConfig::tiny(), short(400)),
            (First, Preset::Portable) => (UpsamplerConfig::portable(), short(400)),
            (First, Preset::Emoji) => (UpsamplerConfig::emoji(), short(6000)),
            (Second, Preset::Portable) => {
                let expected = "a pipeline of diffusers has one upsampler: use the first stage";
                return Err(ConfigError::new("stage", "second", expected));
            }
            (Second, Preset::Tiny) => (UpsamplerConfig::emoji_1024(), TrainConfig { batch_size: 8, ..short(200) }),
            (Second, Preset::Emoji) => (UpsamplerConfig::emoji_1024(), TrainConfig { batch_size: 8, ..short(2000) }),
            (First, Preset::Small) => {
                (UpsamplerConfig::small(), TrainConfig { steps: 100_000, batch_size: 64, ..paper() })
            }
            (First, Preset::Base) => (UpsamplerConfig::base(), paper()),
            (First, Preset::Karlo) => (UpsamplerConfig::karlo(), paper()),
            (First, Preset::Paper) => (UpsamplerConfig::paper_first(), paper()),
            (Second, _) => {
                (UpsamplerConfig::paper_second(), TrainConfig { batch_size: 512, learning_rate: 1.0e-4, ..paper() })
            }
        };
        Ok(RunConfig { model, options: NoOptions {}, train })
    }
}

fn small() -> TrainConfig {
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

/// DALL·E 2, table 3.
fn paper() -> TrainConfig {
    TrainConfig {
        steps: 1_000_000,
        batch_size: 1024,
        learning_rate: 1.2e-4,
        ema_decay: Some(0.9999),
        checkpoint_every: 1000,
        sample_every: Some(5000),
        ..small()
    }
}

/// Batches of crops.
struct Source {
    data: Arc<dyn TrainData>,
    config: UpsamplerConfig,
    stage: UpsamplerStage,
    batch_size: usize,
    seed: u64,
}

impl Source {
    /// Cuts several random crops from each large image before they become tensors, which saves memory.
    fn crops(&self, step: u64, device: &Device) -> Result<Tensor<4>> {
        let size = self.config.output_size();
        let crop = self.stage.crops().side(&self.config)?;
        let mut rng = step_rng(self.seed, 2, step);
        let images = self.data.batch(self.seed, step, self.batch_size.div_ceil(CROPS_PER_IMAGE), size)?;
        let crops: Vec<RgbImage> = (0..self.batch_size)
            .map(|i| {
                let [x, y] = [0; 2].map(|_: usize| rng.random_range(0..=(size - crop) / self.config.factor));
                let [x, y] = [x, y].map(|offset| (offset * self.config.factor) as u32);
                let image = &images[(i / CROPS_PER_IMAGE) % images.len()].image;
                imageops::crop_imm(image, x, y, crop as u32, crop as u32).to_image()
            })
            .collect();
        to_tensor(&crops, device)
    }
}

impl BatchSource for Source {
    type Batch = UpsamplerBatch;

    fn batch(&self, step: u64, device: &Device) -> Result<UpsamplerBatch> {
        let options = self.stage.crops();
        let seed = mix_seed(self.seed, 1, step);
        match self.stage {
            UpsamplerStage::First => {
                let items = self.data.batch(self.seed, step, self.batch_size, self.config.output_size())?;
                let images: Vec<RgbImage> = items.into_iter().map(|item| item.image).collect();
                UpsamplerBatch::draw(seed, to_tensor(&images, device)?, options, &self.config)
            }
            UpsamplerStage::Second => {
                let crops = self.crops(step, device)?;
                UpsamplerBatch::draw_from_crops(seed, crops, options.degradation, &self.config)
            }
        }
    }
}

/// Upsamples fixed images, and installs the upsampler.
struct UpsamplerHooks {
    stage: UpsamplerStage,
    config: UpsamplerConfig,
    data: Arc<dyn TrainData>,
    device: Device,
}

impl UpsamplerHooks {
    fn upsampler(&self, model: &UpsamplerTask) -> Result<DiffusionUpsampler> {
        DiffusionUpsampler::new(self.config.clone(), model.network.clone())
    }
}

impl Hooks<UpsamplerTask> for UpsamplerHooks {
    fn sample(&mut self, model: &UpsamplerTask, _step: u64, path: &Path) -> Result<()> {
        let (low_size, high_size) = (self.config.input_size, self.config.output_size());
        let items = spread_items(&*self.data, high_size, self.stage.grid_size())?;
        let originals: Vec<RgbImage> = items.iter().map(|item| item.image.clone()).collect();
        let low = resize_bicubic(to_tensor(&originals, &self.device)?, [low_size, low_size]).clamp(-1.0, 1.0);
        let bicubic = resize_bicubic(low.clone(), [high_size, high_size]).clamp(-1.0, 1.0);
        let seeds: Vec<u64> = (0..items.len() as u64).collect();
        let mut noise = SeededNoise::new(&seeds, 3);
        let options = UpsamplerOptions::default();
        let images = self.upsampler(model)?.sample(&low, None, &options, &mut noise, &mut continue_sampling)?;
        let columns = [("data", originals), ("bicubic", from_tensor(bicubic)?), ("upsampler", from_tensor(images)?)];
        save_grid(path, &items, &columns)
    }

    fn export(&mut self, model: &UpsamplerTask, pipeline: &mut PipelineDir) -> Result<()> {
        pipeline.install(self.stage.part(), &self.upsampler(model)?, FloatType::F16)
    }
}
