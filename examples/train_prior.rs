//! Trains the diffusion prior on the embeddings of a frozen CLIP, and adds it to the pipeline directory.
//!
//! ```text
//! cargo run --release --example train_prior -- --preset tiny
//! ```
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

mod shared;

use std::path::Path;

use anyhow::Result;
use burn::prelude::Tensor;
use clap::Parser;
use dalle2::core::diffusion::SeededNoise;
use dalle2::core::metrics::cosine_similarity;
use dalle2::core::store::Precision;
use dalle2::core::train::{BatchSource, Hooks, TrainConfig, materialize, mix_seed};
use dalle2::core::{EmbeddingScale, Prior, TextEncoder};
use dalle2::prior::train::{CAPTION_DROPOUT, PriorBatch, PriorTask};
use dalle2::prior::{DiffusionPrior, DiffusionPriorConfig};
use dalle2::{Device, SampleOptions, install_part};
use shared::cli::{Preset, TrainArgs, init_logging};
use shared::data::{Data, Frozen};
use shared::hooks::go_on;

/// Captions of the validation, at most.
const VALIDATION: usize = 128;

/// Train the prior: CLIP image embeddings from captions.
#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    train: TrainArgs,
}

/// Batches of captions and the embeddings of their images.
struct Source {
    data: Data,
    clip: Frozen,
    config: DiffusionPriorConfig,
    batch_size: usize,
    seed: u64,
}

impl BatchSource for Source {
    type Batch = PriorBatch;

    fn batch(&self, step: u64, device: &Device) -> dalle2::Result<PriorBatch> {
        let items = self.data.batch(self.seed, step, self.batch_size, self.clip.image_size())?;
        let encoded = self.clip.encode(&items)?.to_device(device);
        let null = self.clip.null().to_device(device);
        let (seed, train_steps) = (mix_seed(self.seed, 1, step), self.config.train_steps);
        Ok(PriorBatch::draw(seed, &encoded.text, &null, encoded.embedding, CAPTION_DROPOUT, train_steps))
    }
}

/// Compares drawn embeddings with the true ones, and exports the prior.
struct PriorHooks<'a> {
    args: &'a TrainArgs,
    config: DiffusionPriorConfig,
    clip: Frozen,
    data: &'a Data,
}

impl PriorHooks<'_> {
    fn prior(&self, model: &PriorTask) -> dalle2::Result<DiffusionPrior> {
        DiffusionPrior::new(self.config.clone(), model.network.clone())
    }
}

impl Hooks<PriorTask> for PriorHooks<'_> {
    /// Cosine of drawn and true embeddings for plain captions, and the same with the captions' embeddings moved on by
    /// one, which is what a prior that ignores its caption would reach.
    fn validate(&mut self, model: &PriorTask, _step: u64) -> dalle2::Result<Vec<(String, f64)>> {
        let items = self.data.plain(self.clip.image_size(), VALIDATION)?;
        let encoded = self.clip.encode(&items)?;
        let seeds: Vec<u64> = (0..items.len() as u64).collect();
        let mut noise = SeededNoise::new(&seeds, 1);
        let options = SampleOptions::default();
        let drawn = self.prior(model)?.sample(&encoded.text, self.clip.null(), &options, &mut noise, &mut go_on)?;
        let n = items.len();
        let shifted = Tensor::cat(vec![drawn.clone().slice_dim(0, 1..n), drawn.clone().slice_dim(0, 0..1)], 0);
        let mean = |a: Tensor<2>| -> dalle2::Result<f64> {
            Ok(f64::from(cosine_similarity(a, encoded.embedding.clone())?.mean().into_scalar::<f32>()))
        };
        Ok(vec![("cosine_drawn".into(), mean(drawn)?), ("cosine_shifted".into(), mean(shifted)?)])
    }

    fn export(&mut self, model: &PriorTask, _dir: &Path) -> dalle2::Result<()> {
        install_part(self.args.export_dir(), "prior", &self.prior(model)?, Precision::F16)
    }
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let args = &cli.train;
    init_logging();
    let device = args.device()?;
    let data = Data::open(args)?;
    let clip = Frozen::load(args, &device)?;
    let (d, w, s) = (clip.text.embed_dim(), clip.text.token_width(), clip.text.context_length());
    let (config, train) = match args.preset {
        Preset::Tiny => (DiffusionPriorConfig::tiny(d, w, s), TrainConfig { steps: 600, batch_size: 48, ..defaults() }),
        Preset::Portable => {
            let sample = clip.encode(&data.plain(clip.image_size(), VALIDATION)?)?.embedding;
            let config = DiffusionPriorConfig::portable(d, s, EmbeddingScale::measure(sample)?);
            (config, TrainConfig { steps: 600, batch_size: 48, ..defaults() })
        }
        Preset::Emoji => {
            (DiffusionPriorConfig::emoji(d, w, s), TrainConfig { steps: 800, batch_size: 64, ..defaults() })
        }
    };
    let train = args.train_config(train);
    let task = PriorTask::new(&config, &device.clone().autodiff())?;
    materialize(&task, &device, train.seed);
    println!("prior with {} parameters on {} concepts", config.num_params(), data.len());
    let source = Source {
        data: data.clone(),
        clip: clip.clone(),
        config: config.clone(),
        batch_size: train.batch_size,
        seed: train.seed,
    };
    let mut hooks = PriorHooks { args, config: config.clone(), clip, data: &data };
    args.run("prior", train, &config, task, &source, &mut hooks)
}

/// β2 and ε as in the paper (table 3), the weight decay too.
fn defaults() -> TrainConfig {
    TrainConfig {
        learning_rate: 1e-3,
        warmup: 100,
        weight_decay: 6.0e-2,
        beta_2: 0.96,
        epsilon: 1e-6,
        ema_decay: Some(0.998),
        checkpoint_every: 250,
        validate_every: Some(500),
        ..Default::default()
    }
}
