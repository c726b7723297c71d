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
use dalle2::base::diffusion::LossWeight;
use dalle2::base::{Components, EmbeddingScale, PriorOptions};
use dalle2::prior::train::{AutoregressiveTask, PriorTask};
use dalle2::prior::{
    AutoregressivePriorConfig, DiffusionPriorConfig, EmbeddingQuantizer, QuantizerOptions, TrainingCost,
};
use dalle2::{ConfigError, Device};
use dalle2_train::data::EmbeddingSet;
use dalle2_train::{TrainConfig, materialize};
use serde::{Deserialize, Serialize};
use shared::cli::{Preset, TrainArgs, init_logging};
use shared::config::{NoOptions, Options, RunConfig};
use shared::data::{Data, Frozen, Widths};
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

/// What the training of the diffusion prior can be told.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DiffusionOptions {
    /// How the errors of different timesteps are weighted.
    loss_weight: LossWeight,
}

impl Options for DiffusionOptions {
    fn check(&self) -> Result<(), ConfigError> {
        self.loss_weight.validate()
    }
}

fn main() -> Result<()> {
    dalle2::keep_memory();
    let cli = Cli::parse();
    init_logging();
    let device = cli.train.device()?;
    let (opened, widths) = open(&cli, &device)?;
    let train = match cli.train.preset {
        Preset::Tiny | Preset::Portable => TrainConfig { steps: 600, batch_size: 48, ..defaults(cli.kind) },
        Preset::Emoji => TrainConfig { steps: 800, batch_size: 64, ..defaults(cli.kind) },
        Preset::Small => TrainConfig { steps: 20_000, batch_size: 256, ..defaults(cli.kind) },
        Preset::Base | Preset::Karlo | Preset::Paper => paper(cli.kind),
    };
    match cli.kind {
        Kind::Diffusion => train_diffusion(&cli, train, opened, widths, &device),
        Kind::Autoregressive => train_autoregressive(&cli, train, opened, widths, &device),
    }
}

fn train_diffusion(
    cli: &Cli,
    train: TrainConfig,
    opened: Option<(Pairs, Truth)>,
    Widths { embed_dim: d, token_width: w, context_length: s }: Widths,
    device: &Device,
) -> Result<()> {
    let mut config = match (cli.train.preset, &opened) {
        (Preset::Tiny, _) => DiffusionPriorConfig::tiny(d, w, s),
        (Preset::Portable, Some((pairs, _))) => {
            let (image, _) = pairs.sample(VALIDATION, device)?;
            DiffusionPriorConfig::portable(d, s, EmbeddingScale::measure(image)?)
        }
        (Preset::Portable, None) => DiffusionPriorConfig::portable(d, s, EmbeddingScale::None),
        (Preset::Emoji, _) => DiffusionPriorConfig::emoji(d, w, s),
        (Preset::Small, _) => DiffusionPriorConfig::small(d, w, s),
        (Preset::Base, _) => DiffusionPriorConfig::base(d, w, s),
        (Preset::Karlo, _) => {
            DiffusionPriorConfig { embed_dim: d, token_width: w, context_length: s, ..DiffusionPriorConfig::karlo() }
        }
        (Preset::Paper, _) => {
            DiffusionPriorConfig { embed_dim: d, token_width: w, context_length: s, ..DiffusionPriorConfig::paper() }
        }
    };
    config.self_conditioning = cli.self_conditioning;
    let loss_weight = cli.min_snr.map_or(LossWeight::Uniform, |gamma| LossWeight::MinSnr { gamma });
    let run = RunConfig { model: config, options: DiffusionOptions { loss_weight }, train };
    let (Some(run), Some((pairs, truth))) = (cli.train.resolve(run)?, opened) else { return Ok(()) };
    let RunConfig { model: config, options, train } = &run;
    let mut config = config.clone();
    config.diffusion.loss_weight = Some(options.loss_weight).filter(|weight| *weight != LossWeight::Uniform);
    let task = PriorTask::new(&config, &cli.train.training_device()?)?;
    materialize(&task, device, train.seed);
    let (batch_size, seed) = (train.batch_size, train.seed);
    let pairs = pairs.with_seed(seed)?;
    let source = DiffusionSource { pairs, batch_size, train_steps: config.diffusion.train_steps, seed };
    let mut hooks = hooks(cli, truth, config.training_cost(), batch_size);
    cli.train.run("prior", &run, task, source, &mut hooks)
}

fn train_autoregressive(
    cli: &Cli,
    train: TrainConfig,
    opened: Option<(Pairs, Truth)>,
    Widths { embed_dim: d, token_width: w, context_length: s }: Widths,
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
        Preset::Emoji | Preset::Small => AutoregressivePriorConfig::small(d, w, s),
        Preset::Base => AutoregressivePriorConfig::base(d, w, s),
        Preset::Karlo => {
            let karlo = AutoregressivePriorConfig::karlo();
            let components = karlo.components.min(d);
            AutoregressivePriorConfig { embed_dim: d, token_width: w, context_length: s, components, ..karlo }
        }
        Preset::Paper => {
            let paper = AutoregressivePriorConfig::paper();
            let components = paper.components.min(d);
            AutoregressivePriorConfig { embed_dim: d, token_width: w, context_length: s, components, ..paper }
        }
    };
    config.components = cli.components.unwrap_or(config.components);
    let run = RunConfig { model: config, options: NoOptions {}, train };
    let (Some(mut run), Some((pairs, truth))) = (cli.train.resolve(run)?, opened) else { return Ok(()) };
    let (batch_size, seed) = (run.train.batch_size, run.train.seed);
    let pairs = pairs.with_seed(seed)?;
    let components = match cli.explained {
        Some(share) => Components::Explained(share),
        None => Components::Fixed(run.model.components),
    };
    let (image, text) = pairs.sample(QUANTIZER_PAIRS, device)?;
    let options = QuantizerOptions { components, ..QuantizerOptions::of(&run.model) };
    let quantizer = EmbeddingQuantizer::fit(image.clone(), text, &options)?;
    run.model.components = quantizer.num_components();
    let lost = 100.0 * quantizer.reconstruction_error(image)?;
    println!("{} of {d} principal components lose {lost:.2} % of the variance", run.model.components);

    let task = AutoregressiveTask::new(&run.model, quantizer.clone(), &cli.train.training_device()?)?;
    materialize(&task, device, seed);
    let source = AutoregressiveSource { pairs, batch_size, quantizer, seed };
    let mut hooks = hooks(cli, truth, run.model.training_cost(), batch_size);
    cli.train.run("autoregressive_prior", &run, task, source, &mut hooks)
}

fn hooks(cli: &Cli, truth: Truth, cost: TrainingCost, batch_size: usize) -> PriorHooks {
    println!("{} prior with {} parameters, {} tokens for each pair", cli.kind.name(), cost.parameters, cost.tokens);
    let (options, export) = (PriorOptions::default(), Some(cli.train.export_dir()));
    PriorHooks { truth, options, cost, batch_size, export, seconds: 0.0 }
}

/// The pairs to train on and those that validation draws, unless a dry run has none, and the widths of CLIP.
fn open(cli: &Cli, device: &Device) -> Result<(Option<(Pairs, Truth)>, Widths)> {
    if let Some(dir) = &cli.embeddings {
        let set = Arc::new(EmbeddingSet::open(dir)?);
        let info = set.info();
        let widths =
            Widths { embed_dim: info.embed_dim, token_width: info.token_width, context_length: info.context_length };
        let n = set.len().min(VALIDATION);
        let indices: Vec<usize> = (0..n).map(|i| i * set.len() / n).collect();
        let truth = Truth::of_set(&set, &indices, device);
        println!("{} embedded pairs, {} shards left out", set.len(), set.problems().len());
        return Ok((Some((Pairs::of_set(set, 0)?, truth)), widths));
    }
    let (clip, widths) = Frozen::open(&cli.train, device)?;
    let Some(clip) = clip else { return Ok((None, widths)) };
    let data = Data::open(&cli.train)?;
    let encoded = clip.encode(&data.plain(clip.image_size(), VALIDATION)?)?;
    let truth = Truth { text: encoded.text, null: clip.null().clone(), image: encoded.embedding };
    println!("{} concepts", data.len());
    Ok((Some((Pairs::Clip { data, clip, seed: 0 }, truth)), widths))
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

/// The paper's (table 3).
fn paper(kind: Kind) -> TrainConfig {
    let (steps, learning_rate, ema_decay) = match kind {
        Kind::Diffusion => (600_000, 1.1e-4, 0.9999),
        Kind::Autoregressive => (1_000_000, 1.6e-4, 0.999),
    };
    TrainConfig {
        steps,
        batch_size: 4096,
        learning_rate,
        ema_decay: Some(ema_decay),
        checkpoint_every: 1000,
        validate_every: Some(1000),
        ..defaults(kind)
    }
}
