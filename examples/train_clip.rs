//! Trains CLIP on captioned images and adds both towers to the pipeline directory.
//!
//! ```text
//! cargo run --release --example train_clip -- --preset tiny
//! ```
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

mod shared;

use std::path::Path;

use anyhow::Result;
use clap::Parser;
use dalle2::clip::train::{ClipBatch, ClipBatcher, Jitter};
use dalle2::clip::{Clip, ClipConfig, ClipImageEncoder, ClipTextEncoder, eval};
use dalle2::core::image::to_tensor;
use dalle2::core::store::Precision;
use dalle2::core::text::ClipTokenizer;
use dalle2::core::train::{BatchSource, Hooks, TrainConfig, step_rng};
use dalle2::core::{ImageEncoder, TextEncoder};
use dalle2::{Device, install_part};
use shared::cli::{Preset, TrainArgs, init_logging};
use shared::data::Data;

/// Train CLIP: an image encoder and a text encoder that agree.
#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    train: TrainArgs,
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

/// Measures retrieval on plain captions and exports both towers.
struct ClipHooks<'a> {
    args: &'a TrainArgs,
    config: ClipConfig,
    data: &'a Data,
}

impl ClipHooks<'_> {
    fn encoders(&self, model: &Clip) -> dalle2::Result<(ClipTextEncoder, ClipImageEncoder)> {
        Ok((ClipTextEncoder::from_clip(&self.config, model)?, ClipImageEncoder::from_clip(&self.config, model)?))
    }
}

impl Hooks<Clip> for ClipHooks<'_> {
    fn validate(&mut self, model: &Clip, _step: u64) -> dalle2::Result<Vec<(String, f64)>> {
        let (text, image) = self.encoders(model)?;
        let items = self.data.plain(self.config.vision.image_size, 512)?;
        let captions: Vec<&str> = items.iter().map(|item| item.caption.as_str()).collect();
        let images: Vec<_> = items.iter().map(|item| item.image.clone()).collect();
        let images = image.encode(to_tensor(&images, &Device::default())?)?;
        let text = text.encode(&captions)?.pooled;
        let classes: Vec<usize> = (0..items.len()).collect();
        let recall = eval::retrieval(images, text, &classes, &[1, 5])?;
        Ok(recall
            .iter()
            .flat_map(|r| {
                [
                    (format!("image_to_text@{}", r.k), r.image_to_text),
                    (format!("text_to_image@{}", r.k), r.text_to_image),
                ]
            })
            .collect())
    }

    fn export(&mut self, model: &Clip, _dir: &Path) -> dalle2::Result<()> {
        let (text, image) = self.encoders(model)?;
        let dir = self.args.export_dir();
        install_part(&dir, "text_encoder", &text, Precision::F16)?;
        install_part(&dir, "image_encoder", &image, Precision::F16)
    }
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let args = &cli.train;
    init_logging();
    let device = args.device()?;
    let data = Data::open(args)?;

    let tokenizer = ClipTokenizer::openai()?;
    let mut words = Vec::new();
    for caption in data.words()? {
        words.extend(tokenizer.encode(&caption)?);
    }
    let (config, train) = match args.preset {
        Preset::Tiny => (ClipConfig::tiny(), TrainConfig { steps: 400, batch_size: 48, ..defaults() }),
        Preset::Portable => (ClipConfig::portable(), TrainConfig { steps: 400, batch_size: 48, ..defaults() }),
        Preset::Emoji => (ClipConfig::emoji(), TrainConfig { steps: 1000, batch_size: 128, ..defaults() }),
    };
    let config = match args.preset {
        Preset::Portable => config,
        Preset::Tiny | Preset::Emoji => config.with_vocabulary(words),
    };
    let train = args.train_config(train);
    let batcher = ClipBatcher::new(config.clone())?.with_jitter(Jitter { shift: 0.06, scale: 0.08 })?;
    let source = Source {
        data: data.clone(),
        batcher,
        image_size: config.vision.image_size,
        batch_size: train.batch_size,
        seed: train.seed,
    };
    println!("CLIP with {} parameters on {} concepts", config.num_params(), data.len());
    let model = config.init(&device.clone().autodiff());
    let mut hooks = ClipHooks { args, config: config.clone(), data: &data };
    args.run("clip", train, &config, model, &source, &mut hooks)
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
