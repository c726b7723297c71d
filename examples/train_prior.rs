//! Trains a prior on the embeddings of a frozen CLIP, and adds it to the pipeline directory.
//!
//! ```text
//! cargo run --release --example train_prior -- --preset tiny
//! cargo run --release --example train_prior -- --preset tiny --kind autoregressive
//! ```
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

mod shared;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use clap::Parser;
use dalle2::core::data::EmbeddingSet;
use dalle2::core::diffusion::LossWeight;
use dalle2::core::train::{TrainConfig, materialize};
use dalle2::core::{Components, EmbeddingScale, SampleOptions, TextEncoder};
use dalle2::prior::train::{AutoregressiveTask, PriorTask};
use dalle2::prior::{
    AutoregressivePriorConfig, DiffusionPriorConfig, EmbeddingQuantizer, QuantizerOptions, TrainingCost,
};
use dalle2::{ConfigError, Device};
use shared::cli::{Preset, TrainArgs, init_logging};
use shared::data::{Data, Frozen};
use shared::priors::{AutoregressiveSource, DiffusionSource, Kind, Pairs, PriorHooks, Truth};

/// Captions of the validation, at most.
const VALIDATION: usize = 128;
/// Pairs from which principal components and buckets are found when no embedded set is given.
const QUANTIZER_PAIRS: usize = 4096;

/// Train the prior: CLIP image embeddings from captions.
#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    train: TrainArgs,
    /// Which prior
    #[arg(long, value_enum, default_value = "diffusion")]
    kind: Kind,
    /// Trains from pairs that embed_dataset wrote, without CLIP
    #[arg(long, value_name = "DIR")]
    embeddings: Option<PathBuf>,
    /// Diffusion: the network also reads its own last estimate
    #[arg(long)]
    self_conditioning: bool,
    /// Diffusion: weights errors by min(signal-to-noise ratio, GAMMA)
    #[arg(long, value_name = "GAMMA")]
    min_snr: Option<f64>,
    /// Autoregressive: principal components; the preset's if not given
    #[arg(long, value_name = "K", conflicts_with = "explained")]
    components: Option<usize>,
    /// Autoregressive: as many components as explain this share of the variance
    #[arg(long, value_name = "SHARE")]
    explained: Option<f64>,
}

/// Widths and lengths of the captions that the prior reads.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    embed_dim: usize,
    token_width: usize,
    context_length: usize,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    init_logging();
    let device = cli.train.device()?;
    let (pairs, truth, sizes) = open(&cli, &device)?;
    let train = cli.train.train_config(match cli.train.preset {
        Preset::Tiny | Preset::Portable => TrainConfig { steps: 600, batch_size: 48, ..defaults(cli.kind) },
        Preset::Emoji => TrainConfig { steps: 800, batch_size: 64, ..defaults(cli.kind) },
    });
    match cli.kind {
        Kind::Diffusion => train_diffusion(&cli, train, pairs, truth, sizes, &device),
        Kind::Autoregressive => train_autoregressive(&cli, train, pairs, truth, sizes, &device),
    }
}

fn train_diffusion(
    cli: &Cli,
    train: TrainConfig,
    pairs: Pairs,
    truth: Truth,
    Sizes { embed_dim: d, token_width: w, context_length: s }: Sizes,
    device: &Device,
) -> Result<()> {
    let mut config = match cli.train.preset {
        Preset::Tiny => DiffusionPriorConfig::tiny(d, w, s),
        Preset::Portable => {
            let (image, _) = pairs.sample(VALIDATION, device)?;
            DiffusionPriorConfig::portable(d, s, EmbeddingScale::measure(image)?)
        }
        Preset::Emoji => DiffusionPriorConfig::emoji(d, w, s),
    };
    config.self_conditioning = cli.self_conditioning.then_some(true);
    let weight = cli.min_snr.map_or(LossWeight::Uniform, |gamma| LossWeight::MinSnr { gamma });
    let task = PriorTask::new(&config, &device.clone().autodiff())?.with_loss_weight(weight)?;
    materialize(&task, device, train.seed);
    let (batch_size, seed) = (train.batch_size, train.seed);
    let source = DiffusionSource { pairs, batch_size, train_steps: config.train_steps, seed };
    let mut hooks = hooks(cli, truth, config.training_cost(), batch_size);
    // What trains, besides the model: a run is only gone on with under the same weights.
    let described = serde_json::json!({ "prior": config, "loss_weight": weight });
    let described = if weight == LossWeight::Uniform { serde_json::to_value(&config)? } else { described };
    cli.train.run("prior", train, &described, task, &source, &mut hooks)
}

fn train_autoregressive(
    cli: &Cli,
    train: TrainConfig,
    pairs: Pairs,
    truth: Truth,
    Sizes { embed_dim: d, token_width: w, context_length: s }: Sizes,
    device: &Device,
) -> Result<()> {
    if cli.self_conditioning || cli.min_snr.is_some() {
        let expected = "--self-conditioning and --min-snr belong to --kind diffusion";
        return Err(ConfigError::new("kind", cli.kind.name(), expected).into());
    }
    let mut config = match cli.train.preset {
        Preset::Tiny => AutoregressivePriorConfig::tiny(d, w, s),
        Preset::Portable => {
            let expected = "diffusers has no autoregressive prior: use another preset, or --kind diffusion";
            return Err(ConfigError::new("preset", "portable", expected).into());
        }
        Preset::Emoji => AutoregressivePriorConfig::small(d, w, s),
    };
    let components = match (cli.components, cli.explained) {
        (_, Some(share)) => Components::Explained(share),
        (count, None) => Components::Fixed(count.unwrap_or(config.components)),
    };
    let (image, text) = pairs.sample(QUANTIZER_PAIRS, device)?;
    let options = QuantizerOptions { components, ..QuantizerOptions::of(&config) };
    let quantizer = EmbeddingQuantizer::fit(image.clone(), text, &options)?;
    config.components = quantizer.num_components();
    let lost = 100.0 * quantizer.reconstruction_error(image)?;
    println!("{} of {d} principal components lose {lost:.2} % of the variance", config.components);

    let task = AutoregressiveTask::new(&config, quantizer.clone(), &device.clone().autodiff())?;
    materialize(&task, device, train.seed);
    let (batch_size, seed) = (train.batch_size, train.seed);
    let source = AutoregressiveSource { pairs, batch_size, quantizer, seed };
    let mut hooks = hooks(cli, truth, config.training_cost(), batch_size);
    cli.train.run("autoregressive_prior", train, &config, task, &source, &mut hooks)
}

fn hooks(cli: &Cli, truth: Truth, cost: TrainingCost, batch_size: usize) -> PriorHooks {
    println!("{} prior with {} parameters, {} tokens for each pair", cli.kind.name(), cost.parameters, cost.tokens);
    let (options, export) = (SampleOptions::default(), Some(cli.train.export_dir()));
    PriorHooks { truth, options, cost, batch_size, export, seconds: 0.0 }
}

/// The pairs to train on, and those that validation draws.
fn open(cli: &Cli, device: &Device) -> Result<(Pairs, Truth, Sizes)> {
    if let Some(dir) = &cli.embeddings {
        let set = Arc::new(EmbeddingSet::open(dir)?);
        let info = set.info();
        let sizes =
            Sizes { embed_dim: info.embed_dim, token_width: info.token_width, context_length: info.context_length };
        let n = set.len().min(VALIDATION);
        let indices: Vec<usize> = (0..n).map(|i| i * set.len() / n).collect();
        let truth = Truth::of_set(&set, &indices, device);
        println!("{} embedded pairs, {} shards left out", set.len(), set.problems().len());
        return Ok((Pairs::of_set(set, cli.train.seed)?, truth, sizes));
    }
    let data = Data::open(&cli.train)?;
    let clip = Frozen::load(&cli.train, device)?;
    let sizes = Sizes {
        embed_dim: clip.text.embed_dim(),
        token_width: clip.text.token_width(),
        context_length: clip.text.context_length(),
    };
    let encoded = clip.encode(&data.plain(clip.image_size(), VALIDATION)?)?;
    let truth = Truth { text: encoded.text, null: clip.null().clone(), image: encoded.embedding };
    println!("{} concepts", data.len());
    Ok((Pairs::Clip { data, clip, seed: cli.train.seed }, truth, sizes))
}

/// β2, ε and weight decay as in the paper (table 3).
fn defaults(kind: Kind) -> TrainConfig {
    let (weight_decay, beta_2, epsilon) = match kind {
        Kind::Diffusion => (6.0e-2, 0.96, 1e-6),
        Kind::Autoregressive => (4.0e-2, 0.91, 1e-10),
    };
    TrainConfig {
        learning_rate: 1e-3,
        warmup: 100,
        weight_decay,
        beta_2,
        epsilon,
        ema_decay: Some(0.998),
        checkpoint_every: 250,
        validate_every: Some(500),
        ..Default::default()
    }
}
