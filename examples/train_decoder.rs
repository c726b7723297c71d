//! Trains the decoder on the image embeddings and captions of a frozen CLIP, and adds it to the pipeline directory.
//!
//! ```text
//! cargo run --release --example train_decoder -- --preset tiny
//! cargo run --release --example train_decoder -- --preset tiny --inpaint
//! ```
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

mod shared;

use std::path::Path;

use anyhow::Result;
use burn::module::Module;
use clap::Parser;
use dalle2::base::diffusion::SeededNoise;
use dalle2::base::image::{RgbImage, from_tensor};
use dalle2::base::{Captions, Decoder};
use dalle2::decoder::train::{ConditionDropout, DecoderBatch, DecoderTask};
use dalle2::decoder::{DecoderConfig, UnclipDecoder};
use dalle2::{Device, DiffusionOptions, FloatType, install_part};
use dalle2_train::{BatchSource, Hooks, TrainConfig, materialize, mix_seed};
use shared::cli::{Preset, TrainArgs, init_logging};
use shared::config::{NoOptions, RunConfig};
use shared::data::{Data, Frozen, Widths, resized};
use shared::hooks::{GRID, go_on, save_grid};

/// Train the decoder: images from CLIP image embeddings and captions.
#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    train: TrainArgs,
    /// Goes on from the trained decoder with channels for known pixels, and learns to inpaint
    #[arg(long)]
    inpaint: bool,
}

/// Batches of images with their embeddings and captions.
struct Source {
    data: Data,
    clip: Frozen,
    config: DecoderConfig,
    batch_size: usize,
    seed: u64,
}

impl BatchSource for Source {
    type Batch = DecoderBatch;

    fn batch(&self, step: u64, device: &Device) -> dalle2::Result<DecoderBatch> {
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

/// Draws a grid from the embeddings of fixed images, and exports the decoder.
struct DecoderHooks<'a> {
    args: &'a TrainArgs,
    config: DecoderConfig,
    clip: Frozen,
    data: &'a Data,
}

impl DecoderHooks<'_> {
    fn decoder(&self, model: &DecoderTask) -> dalle2::Result<UnclipDecoder> {
        UnclipDecoder::new(self.config.clone(), model.network.clone())
    }
}

impl Hooks<DecoderTask> for DecoderHooks<'_> {
    fn sample(&mut self, model: &DecoderTask, _step: u64, path: &Path) -> dalle2::Result<()> {
        let items = self.data.plain(self.clip.image_size().max(self.config.image_size), GRID)?;
        let encoded = self.clip.encode(&items)?;
        let seeds: Vec<u64> = (0..items.len() as u64).collect();
        let options = DiffusionOptions { steps: Some(20), ..Default::default() };
        let mut noise = SeededNoise::new(&seeds, 2);
        let images = self.decoder(model)?.sample(
            &encoded.embedding,
            Captions { text: &encoded.text, null: self.clip.null() },
            None,
            &options,
            &mut noise,
            &mut go_on,
        )?;
        let originals: Vec<RgbImage> = items.iter().map(|item| item.image.clone()).collect();
        save_grid(path, &items, &[("data", originals), ("decoder", from_tensor(images)?)])
    }

    fn export(&mut self, model: &DecoderTask, _dir: &Path) -> dalle2::Result<()> {
        install_part(self.args.export_dir(), "decoder", &self.decoder(model)?, FloatType::F16)
    }
}

fn main() -> Result<()> {
    dalle2::keep_memory();
    let cli = Cli::parse();
    let args = &cli.train;
    init_logging();
    let device = args.device()?;
    let (clip, Widths { embed_dim, token_width, .. }) = Frozen::open(args, &device)?;
    let (config, train) = match args.preset {
        Preset::Tiny => {
            (DecoderConfig::tiny(embed_dim, token_width), TrainConfig { steps: 1500, batch_size: 16, ..defaults() })
        }
        Preset::Portable => {
            (DecoderConfig::portable(embed_dim), TrainConfig { steps: 1500, batch_size: 16, ..defaults() })
        }
        Preset::Emoji => {
            (DecoderConfig::emoji(embed_dim, token_width), TrainConfig { steps: 4000, batch_size: 16, ..defaults() })
        }
        Preset::Small => {
            (DecoderConfig::small(embed_dim, token_width), TrainConfig { steps: 100_000, batch_size: 64, ..paper() })
        }
        Preset::Base => (DecoderConfig::base(embed_dim, token_width), paper()),
        Preset::Karlo => (DecoderConfig { embed_dim, token_width, ..DecoderConfig::karlo() }, paper()),
        Preset::Paper => (DecoderConfig { embed_dim, token_width, ..DecoderConfig::paper() }, paper()),
    };
    let (config, train, trained) = match cli.inpaint {
        true => {
            let trained = args.trained("decoder", "train_decoder", |dir| UnclipDecoder::load(dir, &device))?;
            // The network knows how to draw, so a quarter of the steps at half of the rate is enough to learn the rest.
            let train = TrainConfig { steps: train.steps / 4, learning_rate: train.learning_rate / 2.0, ..train };
            (trained.config().clone().with_inpainting(), train, Some(trained))
        }
        false => (config, train, None),
    };
    let run = RunConfig { model: config, options: NoOptions {}, train };
    let (Some(run), Some(clip)) = (args.resolve(run)?, clip) else { return Ok(()) };
    let RunConfig { model: config, train, .. } = &run;
    let data = Data::open(args)?;
    let task = match trained {
        Some(trained) => DecoderTask::with_network(config, trained.network()?.train())?,
        None => DecoderTask::new(config, &args.training_device()?)?,
    };
    materialize(&task, &device, train.seed);
    println!("decoder with {} parameters on {} concepts", task.network.num_params(), data.len());
    let source = Source {
        data: data.clone(),
        clip: clip.clone(),
        config: config.clone(),
        batch_size: train.batch_size,
        seed: train.seed,
    };
    let mut hooks = DecoderHooks { args, config: config.clone(), clip, data: &data };
    args.run(if cli.inpaint { "decoder_inpaint" } else { "decoder" }, &run, task, source, &mut hooks)
}

fn defaults() -> TrainConfig {
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

/// The paper's (table 3).
fn paper() -> TrainConfig {
    TrainConfig {
        steps: 800_000,
        batch_size: 2048,
        learning_rate: 1.2e-4,
        weight_decay: 0.0,
        ema_decay: Some(0.9999),
        checkpoint_every: 1000,
        sample_every: Some(5000),
        ..defaults()
    }
}
