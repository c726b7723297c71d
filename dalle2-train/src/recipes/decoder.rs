//! The recipe for the decoder: images from CLIP image embeddings and captions.

use std::path::Path;
use std::sync::Arc;

use burn::prelude::*;
use dalle2_core::diffusion::SeededNoise;
use dalle2_core::image::{RgbImage, from_tensor};
use dalle2_core::store::PipelineDir;
use dalle2_core::{Captions, Decoder, DiffusionOptions, FloatType, Result};
use dalle2_decoder::train::{ConditionDropout, DecoderBatch, DecoderTask};
use dalle2_decoder::{DecoderConfig, UnclipDecoder};

use super::args::{Outcome, Preset, RecipeArgs};
use super::config::{NoOptions, RunConfig};
use super::data::{TrainData, spread_items};
use super::frozen::{ClipSizes, FrozenClip, resized};
use super::run::{Inputs, run};
use super::samples::{GRID_SIZE, continue_sampling, save_grid};
use crate::{BatchSource, Hooks, TrainConfig, materialize, mix_seed};

/// Sampling steps of the grids.
const SAMPLE_STEPS: usize = 20;

/// Trains the decoder on the embeddings of a frozen CLIP, and installs it.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Arguments of all recipes.
    pub args: RecipeArgs,
    /// Whether the trained decoder is fine-tuned for inpainting.
    pub mode: DecoderMode,
}

/// Task of the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DecoderMode {
    /// Trains a decoder from fresh weights.
    #[default]
    Generate,
    /// Adds channels for known pixels to the trained decoder and fine-tunes it to inpaint.
    Inpaint,
}

impl Recipe {
    /// Creates the recipe.
    pub fn new(args: RecipeArgs) -> Self {
        Self { args, mode: DecoderMode::Generate }
    }

    /// Trains on `data`, or describes the run. The recipe [`clip`](super::clip) must have been run with the same output
    /// directory.
    ///
    /// # Errors
    /// If the configuration is not valid, CLIP is missing, the data cannot be read, or as
    /// [`Trainer::run`](crate::Trainer::run).
    pub fn run(&self, data: Arc<dyn TrainData>) -> Result<Outcome> {
        let device = self.args.main_device()?;
        let (clip, sizes) = FrozenClip::open(&self.args, &device)?;
        let (preset, trained) = match self.mode {
            DecoderMode::Generate => (self.preset(sizes), None),
            DecoderMode::Inpaint => {
                let trained = self.args.trained("decoder", "decoder", |dir| UnclipDecoder::load(dir, &device))?;
                (self.inpainting_preset(sizes, &trained), Some(trained))
            }
        };
        let config = self.args.resolve(preset)?;
        let Some(clip) = clip.filter(|_| !self.args.dry_run) else { return self.args.describe(&config) };
        let RunConfig { model, train, .. } = &config;
        let task = match trained {
            Some(trained) => DecoderTask::with_network(model, trained.network()?.train())?,
            None => DecoderTask::new(model, &self.args.training_device()?)?,
        };
        materialize(&task, &device, train.seed);
        tracing::info!("decoder with {} parameters on {} items", task.network.num_params(), data.len());
        let source = Source {
            data: data.clone(),
            clip: clip.clone(),
            config: model.clone(),
            batch_size: train.batch_size,
            seed: train.seed,
        };
        let hooks = DecoderHooks { config: model.clone(), clip, data };
        let part = match self.mode {
            DecoderMode::Generate => "decoder",
            DecoderMode::Inpaint => "decoder_inpaint",
        };
        run(&self.args, part, &config, task, Inputs { source: Box::new(source), hooks: Box::new(hooks) })
    }

    /// Returns the preset's configuration for CLIP embeddings of these sizes.
    pub fn preset(&self, sizes: ClipSizes) -> RunConfig<DecoderConfig> {
        let ClipSizes { embed_dim, token_width, .. } = sizes;
        let short = |steps| TrainConfig { steps, batch_size: 16, ..small() };
        let (model, train) = match self.args.preset {
            Preset::Tiny => (DecoderConfig::tiny(embed_dim, token_width), short(1500)),
            Preset::Portable => (DecoderConfig::portable(embed_dim), short(1500)),
            Preset::Emoji => (DecoderConfig::emoji(embed_dim, token_width), short(4000)),
            Preset::Small => {
                let train = TrainConfig { steps: 100_000, batch_size: 64, ..paper() };
                (DecoderConfig::small(embed_dim, token_width), train)
            }
            Preset::Base => (DecoderConfig::base(embed_dim, token_width), paper()),
            Preset::Karlo => (DecoderConfig { embed_dim, token_width, ..DecoderConfig::karlo() }, paper()),
            Preset::Paper => (DecoderConfig { embed_dim, token_width, ..DecoderConfig::paper() }, paper()),
        };
        RunConfig { model, options: NoOptions {}, train }
    }

    /// A quarter of the steps at half of the learning rate is enough to learn the new channels.
    fn inpainting_preset(&self, sizes: ClipSizes, trained: &UnclipDecoder) -> RunConfig<DecoderConfig> {
        let run = self.preset(sizes);
        let train =
            TrainConfig { steps: run.train.steps / 4, learning_rate: run.train.learning_rate / 2.0, ..run.train };
        RunConfig { model: trained.config().clone().with_inpainting(), train, ..run }
    }
}

fn small() -> TrainConfig {
    TrainConfig {
        learning_rate: 1e-3,
        warmup: 100,
        weight_decay: 0.01,
        ema_decay: Some(0.998),
        checkpoint_every: 250,
        sample_every: Some(500),
        ..Default::default()
    }
}

/// DALL·E 2, table 3.
fn paper() -> TrainConfig {
    TrainConfig {
        steps: 800_000,
        batch_size: 2048,
        learning_rate: 1.2e-4,
        weight_decay: 0.0,
        ema_decay: Some(0.9999),
        checkpoint_every: 1000,
        sample_every: Some(5000),
        ..small()
    }
}

/// Batches of images with their embeddings and captions.
struct Source {
    data: Arc<dyn TrainData>,
    clip: FrozenClip,
    config: DecoderConfig,
    batch_size: usize,
    seed: u64,
}

impl BatchSource for Source {
    type Batch = DecoderBatch;

    fn batch(&self, step: u64, device: &Device) -> Result<DecoderBatch> {
        let size = self.config.image_size;
        let items = self.data.batch(self.seed, step, self.batch_size, self.clip.image_size().max(size))?;
        let encoded = self.clip.encode(&items)?.to_device(device);
        let null = self.clip.null().to_device(device);
        let seed = mix_seed(self.seed, 1, step);
        let batch = DecoderBatch::draw(
            seed,
            resized(encoded.images, size),
            encoded.embedding,
            &encoded.text,
            &null,
            ConditionDropout::default(),
            self.config.diffusion.train_steps,
        );
        Ok(if self.config.inpainting { batch.with_masks(seed) } else { batch })
    }
}

/// Samples a grid from the embeddings of fixed images, and installs the decoder.
struct DecoderHooks {
    config: DecoderConfig,
    clip: FrozenClip,
    data: Arc<dyn TrainData>,
}

impl DecoderHooks {
    fn decoder(&self, model: &DecoderTask) -> Result<UnclipDecoder> {
        UnclipDecoder::new(self.config.clone(), model.network.clone())
    }
}

impl Hooks<DecoderTask> for DecoderHooks {
    fn sample(&mut self, model: &DecoderTask, _step: u64, path: &Path) -> Result<()> {
        let items = spread_items(&*self.data, self.clip.image_size().max(self.config.image_size), GRID_SIZE)?;
        let encoded = self.clip.encode(&items)?;
        let seeds: Vec<u64> = (0..items.len() as u64).collect();
        let options = DiffusionOptions { steps: Some(SAMPLE_STEPS), ..Default::default() };
        let images = self.decoder(model)?.sample(
            &encoded.embedding,
            Captions { text: &encoded.text, null: self.clip.null() },
            None,
            &options,
            &mut SeededNoise::new(&seeds, 2),
            &mut continue_sampling,
        )?;
        let originals: Vec<RgbImage> = items.iter().map(|item| item.image.clone()).collect();
        save_grid(path, &items, &[("data", originals), ("decoder", from_tensor(images)?)])
    }

    fn export(&mut self, model: &DecoderTask, pipeline: &mut PipelineDir) -> Result<()> {
        pipeline.install("decoder", &self.decoder(model)?, FloatType::F16)
    }
}
