//! The command line and the sizes of the experiment.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use dalle2::base::Components;
use dalle2::prior::{AutoregressivePriorConfig, DiffusionPriorConfig};
use dalle2_emoji::Subset;
use dalle2_train::TrainConfig;
use serde::Serialize;

use dalle2_train::recipes::prior::PriorKind;

const EXAMPLES: &str = "Examples:
  dalle2 compare-priors --preset small --out out/compare
  dalle2 compare-priors --budget seconds=120 --seeds 3";

/// Train both kinds of prior with one budget and compare them
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Cli {
    /// Size of the experiment
    #[arg(long, value_enum, default_value = "small")]
    pub preset: Preset,
    /// Only the emoji have held-out compositions and renderings to compare with
    #[arg(long, default_value = "emoji", value_parser = ["emoji"])]
    pub data: String,
    /// Output directory; finished parts of an interrupted run are reused
    #[arg(long, value_name = "DIR", default_value = "out/compare")]
    pub out: PathBuf,
    /// Pipeline directory of CLIP and the decoder
    #[arg(long, value_name = "DIR", default_value = "models/emoji")]
    pub model: PathBuf,
    /// Training budget per prior: macs, steps or seconds, for example seconds=120
    #[arg(long, value_name = "KIND[=AMOUNT]", default_value = "macs")]
    pub budget: Budget,
    /// Trainings of each prior; the preset's if not given
    #[arg(long, value_name = "K")]
    pub seeds: Option<usize>,
    /// Width of the diffusion prior's transformer; the other's is derived
    #[arg(long, value_name = "N")]
    pub width: Option<usize>,
    /// Blocks of both transformers
    #[arg(long, value_name = "N")]
    pub layers: Option<usize>,
    /// Principal components
    #[arg(long, value_name = "K")]
    pub components: Option<usize>,
    /// Pairs per step
    #[arg(long, value_name = "N")]
    pub batch_size: Option<usize>,
    /// Learning rate of both
    #[arg(long, value_name = "RATE")]
    pub learning_rate: Option<f64>,
    /// Guidance scales to compare
    #[arg(long, value_name = "SCALE", value_delimiter = ',', default_value = "1,2,3")]
    pub guidance: Vec<f64>,
    /// Decoded captions per seed; the preset's if not given
    #[arg(long, value_name = "N")]
    pub decode: Option<usize>,
    /// Sampling steps of the decoder
    #[arg(long, value_name = "N", default_value_t = 12)]
    pub decoder_steps: usize,
    /// Device: default, flex, cuda:0, wgpu, …
    #[arg(long, default_value = "default")]
    pub device: String,
}

/// Sizes of the experiment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// A few dozen emoji, tiny networks: to see that it works.
    Tiny,
    /// The training set of the bundled model, three seeds.
    Small,
}

/// The quantity that is equal for both priors.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Budget {
    /// Multiply-accumulates of training.
    Macs(Option<f64>),
    /// Optimizer steps.
    Steps(Option<u64>),
    /// Seconds of training, turned into steps by timing some at the beginning.
    Seconds(Option<f64>),
}

impl FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, amount) = text.split_once('=').map_or((text, None), |(kind, amount)| (kind, Some(amount)));
        let number = |amount: &str| match amount.parse::<f64>() {
            Ok(value) if value.is_finite() && value > 0.0 => Ok(value),
            _ => Err(format!("`{amount}` must be a number above 0")),
        };
        let amount = amount.map(number).transpose()?;
        match kind {
            "macs" => Ok(Self::Macs(amount)),
            "steps" => Ok(Self::Steps(amount.map(|steps| (steps as u64).max(1)))),
            "seconds" => Ok(Self::Seconds(amount)),
            _ => Err("expected macs, steps or seconds, with =AMOUNT if you like".into()),
        }
    }
}

/// The numbers of a preset.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// Which emoji.
    pub subset: Subset,
    /// Images of each caption in the training set.
    pub variations: usize,
    /// Trainings of each prior.
    pub seeds: usize,
    /// Width of the diffusion prior; the autoregressive prior gets the width with the nearest number of parameters.
    pub d_model: usize,
    /// Heads of both.
    pub n_heads: usize,
    /// Blocks of both.
    pub n_layers: usize,
    /// Principal components.
    pub components: usize,
    /// Pairs per step of both.
    pub batch_size: usize,
    /// Steps of the diffusion prior that make the default budget.
    pub steps: u64,
    /// Learning rate of both.
    pub learning_rate: f64,
    /// Captions that are decoded for each seed.
    pub decode: usize,
    /// Samples of a caption whose distances are its diversity.
    pub samples: usize,
}

impl Cli {
    /// The preset's numbers with what the command line overrides.
    pub fn plan(&self) -> Result<Plan> {
        let small = Plan {
            subset: Subset::Small,
            variations: 6,
            seeds: 3,
            d_model: 64,
            n_heads: 4,
            n_layers: 3,
            components: 32,
            batch_size: 32,
            steps: 1024,
            learning_rate: 3e-3,
            decode: 12,
            samples: 4,
        };
        let mut plan = match self.preset {
            Preset::Small => small,
            Preset::Tiny => Plan {
                subset: Subset::Tiny,
                seeds: 2,
                n_layers: 2,
                components: 16,
                steps: 120,
                decode: 4,
                samples: 2,
                ..small
            },
        };
        plan.seeds = self.seeds.unwrap_or(plan.seeds);
        plan.decode = self.decode.unwrap_or(plan.decode);
        plan.d_model = self.width.unwrap_or(plan.d_model);
        plan.n_layers = self.layers.unwrap_or(plan.n_layers);
        plan.components = self.components.unwrap_or(plan.components);
        plan.batch_size = self.batch_size.unwrap_or(plan.batch_size);
        plan.learning_rate = self.learning_rate.unwrap_or(plan.learning_rate);
        ensure!(plan.batch_size > 0, "--batch-size 0: at least one pair in a step");
        ensure!(plan.seeds > 0, "--seeds 0: at least one training of each prior");
        ensure!(plan.decode > 1, "--decode {}: at least 2 captions are needed for a comparison", plan.decode);
        ensure!(!self.guidance.is_empty(), "--guidance: at least one scale");
        for scale in &self.guidance {
            ensure!(scale.is_finite() && *scale >= 0.0, "--guidance {scale}: must be finite and at least 0");
        }
        Ok(plan)
    }
}

/// The networks of both kinds, of nearly the same number of parameters.
#[derive(Debug, Clone, Serialize)]
pub struct Configs {
    /// The diffusion prior.
    pub diffusion: DiffusionPriorConfig,
    /// The autoregressive prior.
    pub autoregressive: AutoregressivePriorConfig,
}

impl Configs {
    /// For captions and embeddings of these sizes: `[D, W, S]`.
    pub fn new(plan: &Plan, [d, w, s]: [usize; 3]) -> Result<Self> {
        let (n_heads, n_layers) = (plan.n_heads, plan.n_layers);
        let diffusion =
            DiffusionPriorConfig { d_model: plan.d_model, n_heads, n_layers, ..DiffusionPriorConfig::small(d, w, s) };
        diffusion.validate()?;
        let target = diffusion.num_params();
        let of_width = |d_model| AutoregressivePriorConfig {
            components: plan.components.min(d),
            d_model,
            n_heads,
            n_layers,
            ..AutoregressivePriorConfig::small(d, w, s)
        };
        let widths = (1..=2 * plan.d_model / (2 * n_heads)).map(|i| 2 * n_heads * i);
        let nearest = widths.map(of_width).min_by_key(|config| config.num_params().abs_diff(target));
        let autoregressive = nearest.unwrap_or_else(|| of_width(plan.d_model));
        autoregressive.validate()?;
        Ok(Self { diffusion, autoregressive })
    }

    /// Number of components.
    pub fn components(&self) -> Components {
        Components::Fixed(self.autoregressive.components)
    }
}

/// How both are trained: alike, but for the weight decay, which is the paper's (table 3); β2 is its diffusion prior's.
pub fn train_config(kind: PriorKind, plan: &Plan, steps: u64, seed: u64) -> TrainConfig {
    let weight_decay = match kind {
        PriorKind::Diffusion => 6.0e-2,
        PriorKind::Autoregressive => 4.0e-2,
    };
    TrainConfig {
        steps,
        batch_size: plan.batch_size,
        learning_rate: plan.learning_rate,
        warmup: (steps / 10).clamp(1, 100),
        weight_decay,
        beta_2: 0.96,
        epsilon: 1e-8,
        ema_decay: Some(0.99),
        seed,
        checkpoint_every: steps,
        keep_checkpoints: 1,
        validate_every: Some((steps / 6).max(1)),
        ..Default::default()
    }
}
