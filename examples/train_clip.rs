//! Trains CLIP on captioned images and adds both towers to the pipeline directory.
//!
//! ```text
//! cargo run --release --example train_clip -- --preset tiny
//! cargo run --release --example train_clip -- --preset emoji --batch-size 1024 --chunk 128
//! cargo run --release --features cuda --example train_clip -- --preset small --devices cuda:0,cuda:1
//! ```
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

mod shared;

use std::path::{Path, PathBuf};

use anyhow::Result;
use burn::module::Module;
use clap::Parser;
use dalle2::base::image::to_tensor;
use dalle2::base::text::ClipTokenizer;
use dalle2::base::{ImageEncoder, TextEncoder};
use dalle2::clip::train::{ClipBatch, ClipBatcher, ClipTask, ClipTaskOptions, ImageTower, Jitter};
use dalle2::clip::{ClipConfig, ClipImageEncoder, ClipTextEncoder, eval};
use dalle2::{ConfigError, Device, FloatType, install_part};
use dalle2_train::{BatchSource, Hooks, TrainConfig, materialize, step_rng};
use serde::{Deserialize, Serialize};
use shared::cli::{Preset, TrainArgs, init_logging};
use shared::config::{Options, RunConfig};
use shared::data::Data;

/// What labels are put into for zero-shot classification.
const TEMPLATES: [&str; 2] = ["{}", "an emoji of {}"];

/// Train CLIP: an image encoder and a text encoder that agree.
#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    train: TrainArgs,
    /// Pairs in memory at once: larger batches go through in parts, with the gradients of the whole
    #[arg(long, value_name = "PAIRS")]
    chunk: Option<usize>,
    /// Begins with the image tower of this directory, for example RUN/export/image_encoder; with
    /// `--set options.task.image_tower=locked` it stays as it is
    #[arg(long, value_name = "DIR")]
    image_tower: Option<PathBuf>,
}

/// What the training of CLIP can be told.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ClipOptions {
    /// Loss, parts of a batch, locked tower.
    task: ClipTaskOptions,
    /// Share of the patches that are not read.
    patch_dropout: f64,
}

impl Options for ClipOptions {
    /// So that all pairs of a batch are negatives of one another.
    const DIVIDES_BATCHES: bool = true;

    fn check(&self) -> Result<(), ConfigError> {
        self.task.validate().map_err(|e| e.within("task"))
    }

    fn at_once(&self, batch_size: usize) -> usize {
        self.task.chunk.unwrap_or(batch_size).min(batch_size)
    }
}

/// Batches of images and captions, one class per concept.
struct Source {
    data: Data,
    batcher: ClipBatcher,
    image_size: usize,
    batch_size: usize,
    seed: u64,
}

impl BatchSource for Source {
    type Batch = ClipBatch;

    fn batch(&self, step: u64, device: &Device) -> dalle2::Result<ClipBatch> {
        let items = self.data.batch(self.seed, step, self.batch_size, self.image_size)?;
        let items: Vec<_> = items.iter().map(|item| (item.caption.as_str(), &item.image, item.class)).collect();
        self.batcher.batch(&items, &mut step_rng(self.seed, 0, step), device)
    }
}

/// Measures retrieval and zero-shot classification on plain captions and exports both towers.
struct ClipHooks<'a> {
    args: &'a TrainArgs,
    config: ClipConfig,
    data: &'a Data,
}

impl ClipHooks<'_> {
    fn encoders(&self, model: &ClipTask) -> dalle2::Result<(ClipTextEncoder, ClipImageEncoder)> {
        let clip = &model.clip;
        Ok((
            ClipTextEncoder::new(self.config.text.clone(), &clip.text)?,
            ClipImageEncoder::new(self.config.vision.clone(), &clip.vision)?,
        ))
    }
}

impl Hooks<ClipTask> for ClipHooks<'_> {
    fn validate(&mut self, model: &ClipTask, _step: u64) -> dalle2::Result<Vec<(String, f64)>> {
        let (text, image) = self.encoders(model)?;
        let items = self.data.plain(self.config.vision.image_size, 512)?;
        let captions: Vec<&str> = items.iter().map(|item| item.caption.as_str()).collect();
        let images: Vec<_> = items.iter().map(|item| item.image.clone()).collect();
        let images = image.encode(to_tensor(&images, &Device::default())?)?;
        let labels = eval::embed_labels(&text, &captions, &TEMPLATES)?;
        let classes: Vec<usize> = (0..items.len()).collect();
        let zero_shot = eval::top_k_accuracy(images.clone(), labels, &classes, &[1])?;
        let mut figures = vec![("zero_shot@1".to_string(), zero_shot[0])];
        for recall in eval::retrieval(images, text.encode(&captions)?.pooled, &classes, &[1, 5])? {
            figures.push((format!("image_to_text@{}", recall.k), recall.image_to_text));
            figures.push((format!("text_to_image@{}", recall.k), recall.text_to_image));
        }
        Ok(figures)
    }

    fn export(&mut self, model: &ClipTask, _dir: &Path) -> dalle2::Result<()> {
        let (text, image) = self.encoders(model)?;
        let dir = self.args.export_dir();
        install_part(&dir, "text_encoder", &text, FloatType::F16)?;
        install_part(&dir, "image_encoder", &image, FloatType::F16)
    }
}

fn main() -> Result<()> {
    dalle2::keep_memory();
    let cli = Cli::parse();
    let args = &cli.train;
    init_logging();
    let device = args.training_device()?;
    let data = Data::open(args)?;
    let Some(run) = args.resolve(preset(&cli, &data)?)? else { return Ok(()) };
    let RunConfig { model: config, options, train } = &run;

    let batcher = ClipBatcher::new(config.clone())?
        .with_jitter(Jitter { shift: 0.06, scale: 0.08 })?
        .with_patch_dropout(options.patch_dropout)?;
    let source = Source {
        data: data.clone(),
        batcher,
        image_size: config.vision.image_size,
        batch_size: train.batch_size,
        seed: train.seed,
    };
    println!("CLIP with {} parameters on {} concepts", config.num_params(), data.len());
    let task = match &cli.image_tower {
        None if options.task.image_tower == ImageTower::Locked => {
            anyhow::bail!("a locked image tower must have been trained: name it with --image-tower DIR")
        }
        None => ClipTask::new(config, &options.task, &device)?,
        Some(_) if args.gradient_checkpointing => {
            anyhow::bail!("--gradient-checkpointing does not work with a tower that was loaded")
        }
        Some(dir) => {
            let tower = ClipImageEncoder::load(dir, &device.clone().inner())?.model().clone().train().fork(&device);
            ClipTask::new(config, &options.task, &device)?.with_image_tower(tower)
        }
    };
    let task = match args.several_devices()? {
        Some(devices) => task.with_devices(&devices)?,
        None => task,
    };
    materialize(&task, &device, train.seed);
    let mut hooks = ClipHooks { args, config: config.clone(), data: &data };
    args.run("clip", &run, task, source, &mut hooks)
}

/// What the preset says, for the words of the data set.
fn preset(cli: &Cli, data: &Data) -> Result<RunConfig<ClipConfig, ClipOptions>> {
    let tokenizer = ClipTokenizer::openai()?;
    let mut words = Vec::new();
    for caption in data.words()? {
        words.extend(tokenizer.encode(&caption)?);
    }
    let model = ClipConfig::preset(cli.train.preset.name())?;
    let (model, train) = match cli.train.preset {
        Preset::Tiny => (model.with_vocabulary(words), TrainConfig { steps: 400, batch_size: 48, ..defaults() }),
        Preset::Portable => (model, TrainConfig { steps: 400, batch_size: 48, ..defaults() }),
        Preset::Emoji => (model.with_vocabulary(words), TrainConfig { steps: 1000, batch_size: 128, ..defaults() }),
        Preset::Small => (model, TrainConfig { steps: 20_000, batch_size: 1024, ..large(1e-3) }),
        // Batch, decay and warm-up of CLIP's tables 18 to 20.
        Preset::Base => (model, TrainConfig { steps: 390_000, ..large(5e-4) }),
        Preset::Karlo | Preset::Paper => (model, TrainConfig { steps: 390_000, ..large(4e-4) }),
    };
    let chunk = match cli.train.preset {
        Preset::Tiny | Preset::Portable | Preset::Emoji => cli.chunk,
        Preset::Small | Preset::Base | Preset::Karlo | Preset::Paper => cli.chunk.or(Some(256)),
    };
    let options = ClipOptions { task: ClipTaskOptions { chunk, ..Default::default() }, ..Default::default() };
    Ok(RunConfig { model, options, train })
}

/// As Radford et al. 2021, table 18, with the ε of the vision transformers.
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

fn defaults() -> TrainConfig {
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
