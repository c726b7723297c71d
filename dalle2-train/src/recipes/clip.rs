//! The recipe for CLIP: an image encoder and a text encoder that agree.

use std::path::PathBuf;
use std::sync::Arc;

use burn::prelude::*;
use dalle2_clip::train::{ClipBatch, ClipBatcher, ClipTask, ClipTaskOptions, ImageTower};
use dalle2_clip::{ClipConfig, ClipImageEncoder, ClipTextEncoder, eval};
use dalle2_core::image::to_tensor;
use dalle2_core::store::PipelineDir;
use dalle2_core::text::ClipTokenizer;
use dalle2_core::{ConfigError, Error, FloatType, ImageEncoder, Result, TextEncoder};
use serde::{Deserialize, Serialize};

use super::args::{Outcome, Preset, RecipeArgs};
use super::config::{PartOptions, RunConfig};
use super::data::{TrainData, TrainItem, spread_items};
use super::embed::CLIP_JITTER;
use super::run::{Inputs, run};
use super::validation::Validation;
use crate::data::DataSplit;
use crate::{BatchSource, Hooks, TrainConfig, materialize, step_rng};

/// Templates of the labels in zero-shot classification.
const TEMPLATES: [&str; 2] = ["{}", "an emoji of {}"];
/// Items of a validation, at most.
const VALIDATION_ITEMS: usize = 512;

/// Training options of CLIP.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClipOptions {
    /// Loss, chunks of a batch, locked tower.
    pub task: ClipTaskOptions,
    /// Share of the image patches that are dropped.
    pub patch_dropout: f64,
}

impl PartOptions for ClipOptions {
    /// So that all pairs of a batch are negatives of one another.
    const DIVIDES_BATCHES: bool = true;

    fn check(&self) -> Result<(), ConfigError> {
        self.task.validate().map_err(|e| e.within("task"))
    }

    fn items_per_pass(&self, batch_size: usize) -> usize {
        self.task.chunk.unwrap_or(batch_size).min(batch_size)
    }
}

/// Trains CLIP and installs both encoders.
#[derive(Clone)]
pub struct Recipe {
    /// Arguments of all recipes.
    pub args: RecipeArgs,
    /// Pairs in memory at once; larger batches are processed in chunks, with the gradients of the full batch.
    pub chunk: Option<usize>,
    /// Directory of an image encoder to start from.
    pub image_tower: Option<PathBuf>,
    /// Data of the validation.
    pub validation: Validation<Arc<dyn TrainData>>,
}

impl Recipe {
    /// Creates the recipe with a preset's options.
    pub fn new(args: RecipeArgs) -> Self {
        Self { args, chunk: None, image_tower: None, validation: Validation::Training }
    }

    /// Trains on `data`, or describes the run.
    ///
    /// # Errors
    /// If the configuration is not valid, the data cannot be read, or as [`Trainer::run`](crate::Trainer::run).
    pub fn run(&self, data: Arc<dyn TrainData>) -> Result<Outcome> {
        let config = self.args.resolve(self.preset(&*data)?)?;
        if self.args.dry_run {
            return self.args.describe(&config);
        }
        let DataSplit { train: data, held_out } = self.validation.split(data)?;
        let RunConfig { model, options, train } = &config;
        let task = self.task(model, options)?;
        materialize(&task, &self.args.training_device()?, train.seed);
        tracing::info!("CLIP with {} parameters on {} items", model.num_params(), data.len());
        let batcher =
            ClipBatcher::new(model.clone())?.with_jitter(CLIP_JITTER)?.with_patch_dropout(options.patch_dropout)?;
        let source = Source {
            data,
            batcher,
            image_size: model.vision.image_size,
            batch_size: train.batch_size,
            seed: train.seed,
        };
        let hooks = ClipHooks { config: model.clone(), data: held_out, validation: self.validation.clone() };
        run(&self.args, "clip", &config, task, Inputs { source: Box::new(source), hooks: Box::new(hooks) })
    }

    fn task(&self, model: &ClipConfig, options: &ClipOptions) -> Result<ClipTask> {
        let device = self.args.training_device()?;
        let task = match &self.image_tower {
            None if options.task.image_tower == ImageTower::Locked => {
                let expected = "needs a trained image tower: name its directory";
                return Err(ConfigError::new("options.task.image_tower", "locked", expected).into());
            }
            None => ClipTask::new(model, &options.task, &device)?,
            Some(dir) if self.args.gradient_checkpointing => {
                let expected = "cannot be combined with gradient checkpointing";
                return Err(ConfigError::new("image_tower", dir.display(), expected).into());
            }
            Some(dir) => {
                let tower = ClipImageEncoder::load(dir, &device.clone().inner())?.model().clone().train().fork(&device);
                ClipTask::new(model, &options.task, &device)?.with_image_tower(tower)
            }
        };
        match self.args.several_devices()? {
            Some(devices) => task.with_devices(&devices),
            None => Ok(task),
        }
    }

    /// Returns the preset's configuration, with the words of the data set as vocabulary for small models.
    ///
    /// # Errors
    /// If the captions cannot be read.
    pub fn preset(&self, data: &dyn TrainData) -> Result<RunConfig<ClipConfig, ClipOptions>> {
        let preset = self.args.preset;
        let model = ClipConfig::preset(preset.name())?;
        let vocabulary = |model: ClipConfig| -> Result<ClipConfig> { Ok(model.with_vocabulary(token_ids(data)?)) };
        let (model, train) = match preset {
            Preset::Tiny => (vocabulary(model)?, TrainConfig { steps: 400, batch_size: 48, ..small() }),
            Preset::Portable => (model, TrainConfig { steps: 400, batch_size: 48, ..small() }),
            Preset::Emoji => (vocabulary(model)?, TrainConfig { steps: 1000, batch_size: 128, ..small() }),
            Preset::Small => (model, TrainConfig { steps: 20_000, batch_size: 1024, ..large(1e-3) }),
            // Batch, decay and warm-up of CLIP's tables 18 to 20.
            Preset::Base => (model, TrainConfig { steps: 390_000, ..large(5e-4) }),
            Preset::Karlo | Preset::Paper => (model, TrainConfig { steps: 390_000, ..large(4e-4) }),
        };
        let chunk = match preset {
            Preset::Tiny | Preset::Portable | Preset::Emoji => self.chunk,
            Preset::Small | Preset::Base | Preset::Karlo | Preset::Paper => self.chunk.or(Some(256)),
        };
        let options = ClipOptions { task: ClipTaskOptions { chunk, ..Default::default() }, ..Default::default() };
        Ok(RunConfig { model, options, train })
    }
}

/// Returns the token ids of all words of a data set.
fn token_ids(data: &dyn TrainData) -> Result<Vec<u32>> {
    let tokenizer = ClipTokenizer::openai()?;
    let mut ids = Vec::new();
    for text in data.words()? {
        ids.extend(tokenizer.encode(&text)?);
    }
    Ok(ids)
}

/// Radford et al. 2021, table 18, with the ε of the vision transformers.
fn large(learning_rate: f64) -> TrainConfig {
    TrainConfig {
        batch_size: 32_768,
        learning_rate,
        warmup: 2000,
        weight_decay: 0.2,
        beta_2: 0.98,
        epsilon: 1e-6,
        ema_decay: None,
        validate_every: Some(1000),
        ..Default::default()
    }
}

fn small() -> TrainConfig {
    TrainConfig {
        learning_rate: 1e-3,
        warmup: 100,
        weight_decay: 0.05,
        beta_2: 0.98,
        ema_decay: Some(0.995),
        checkpoint_every: 500,
        validate_every: Some(500),
        ..Default::default()
    }
}

/// Batches of images and captions.
struct Source {
    data: Arc<dyn TrainData>,
    batcher: ClipBatcher,
    image_size: usize,
    batch_size: usize,
    seed: u64,
}

impl BatchSource for Source {
    type Batch = ClipBatch;

    fn batch(&self, step: u64, device: &Device) -> Result<ClipBatch> {
        let items = self.data.batch(self.seed, step, self.batch_size, self.image_size)?;
        let items: Vec<_> =
            items.iter().map(|item| (item.caption.as_str(), &item.image, item.class as usize)).collect();
        self.batcher.batch(&items, &mut step_rng(self.seed, 0, step), device)
    }
}

/// Measures retrieval and zero-shot classification on plain captions, and installs both encoders.
struct ClipHooks {
    config: ClipConfig,
    data: Arc<dyn TrainData>,
    validation: Validation<Arc<dyn TrainData>>,
}

impl ClipHooks {
    fn encoders(&self, model: &ClipTask) -> Result<(ClipTextEncoder, ClipImageEncoder)> {
        let clip = &model.clip;
        Ok((
            ClipTextEncoder::new(self.config.text.clone(), &clip.text)?,
            ClipImageEncoder::new(self.config.vision.clone(), &clip.vision)?,
        ))
    }
}

impl Hooks<ClipTask> for ClipHooks {
    fn validate(&mut self, model: &ClipTask, _step: u64) -> Result<Vec<(String, f64)>> {
        let (text, image) = self.encoders(model)?;
        let items = spread_items(&*self.data, self.config.vision.image_size, VALIDATION_ITEMS)?;
        let captions: Vec<&str> = items.iter().map(|item| item.caption.as_str()).collect();
        let images: Vec<_> = items.iter().map(|item| item.image.clone()).collect();
        let images = image.encode(to_tensor(&images, &Device::default())?)?;
        // Items with one caption have one class, and an answer of the right class is right.
        let mut labels: Vec<(u64, &str)> =
            items.iter().zip(&captions).map(|(item, text)| (item.class, *text)).collect();
        labels.sort_unstable();
        labels.dedup_by_key(|(class, _)| *class);
        let class_of = |item: &TrainItem| labels.partition_point(|(class, _)| *class < item.class);
        let classes: Vec<usize> = items.iter().map(class_of).collect();
        let labels: Vec<&str> = labels.into_iter().map(|(_, caption)| caption).collect();
        let zero_shot =
            eval::top_k_accuracy(images.clone(), eval::embed_labels(&text, &labels, &TEMPLATES)?, &classes, &[1])?;
        let accuracy = zero_shot.first().ok_or_else(|| Error::Input("no accuracy at k = 1".into()))?;
        let mut metrics = vec![("zero_shot@1".to_string(), *accuracy)];
        for recall in eval::retrieval(images, text.encode_truncated(&captions)?.0.pooled, &classes, &[1, 5])? {
            metrics.push((format!("image_to_text@{}", recall.k), recall.image_to_text));
            metrics.push((format!("text_to_image@{}", recall.k), recall.text_to_image));
        }
        Ok(self.validation.label(metrics))
    }

    fn export(&mut self, model: &ClipTask, pipeline: &mut PipelineDir) -> Result<()> {
        let (text, image) = self.encoders(model)?;
        pipeline.install("text_encoder", &text, FloatType::F16)?;
        pipeline.install("image_encoder", &image, FloatType::F16)
    }
}
