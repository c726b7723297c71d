//! Command-line arguments of the recipes, for [`clap`], and the signals that stop a run.
//!
//! A program flattens the arguments of a recipe into its own, opens the data set that [`TrainArgs::data`] names, and runs
//! the recipe:
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use clap::Parser;
//! use dalle2_train::cli::ClipArgs;
//! use dalle2_train::recipes::ImageData;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! #[derive(Parser)]
//! struct Cli {
//!     #[command(flatten)]
//!     clip: ClipArgs,
//! }
//!
//! let Cli { clip } = Cli::parse();
//! let data = ImageData::open(&clip.train.data, clip.train.workers)?;
//! println!("{}", clip.recipe()?.run(Arc::new(data))?);
//! # Ok(())
//! # }
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use dalle2_core::{Components, Error, Result};

use crate::data::EmbeddingSet;
use crate::recipes::prior::{PriorData, PriorKind};
use crate::recipes::upsampler::UpsamplerStage;
use crate::recipes::{ImageData, Preset, RecipeArgs, TrainData, Validation, clip, decoder, prior, upsampler};
use crate::{Interrupter, RunOptions};

/// Arguments that all training commands take.
#[derive(Debug, Clone, Args)]
pub struct TrainArgs {
    /// Sizes of the models and of the data set
    #[arg(long, value_enum, default_value = "tiny")]
    pub preset: Preset,
    /// `emoji`, or your own data: a folder with a .txt caption beside each image, an index (.jsonl, .csv, .parquet)
    /// or webdataset shards ("shards/{00..09}.tar"). May be given several times with weights, PATH:WEIGHT; see docs/data.md
    #[arg(long, default_value = "emoji", value_name = "emoji|PATH")]
    pub data: Vec<String>,
    /// Threads that decode images of your own data; one per core if not given
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,
    /// Which emoji: tiny, small or full; the preset's own if not given
    #[arg(long)]
    pub subset: Option<String>,
    /// Directory of the model: each part trains in a separate folder and installs itself into DIR/export
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Optimizer steps
    #[arg(long)]
    pub steps: Option<u64>,
    /// Images per step
    #[arg(long)]
    pub batch_size: Option<usize>,
    /// Resumes from the newest checkpoint
    #[arg(long)]
    pub resume: bool,
    /// Seed of weights, data order, noise and augmentation; 0 if not given
    #[arg(long)]
    pub seed: Option<u64>,
    /// Device: default, flex, cuda:0, wgpu, …
    #[arg(long, default_value = "default")]
    pub device: String,
    /// Devices that compute a step together, such as cuda:0,cuda:1. CLIP divides each batch among them; for the other parts
    /// each takes a batch, and `train.accumulation` becomes their number unless it is a multiple of it
    #[arg(long, value_name = "A,B", value_delimiter = ',', conflicts_with = "device")]
    pub devices: Vec<String>,
    /// Recomputes cheap operations in the backward pass to save memory
    #[arg(long)]
    pub gradient_checkpointing: bool,
    /// JSON file in the form of a run's config.json; missing fields have the preset's values
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Changes one value, such as train.learning_rate=1e-3 or model.dropout=0.1; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
    /// Prints the configuration, the number of parameters and the memory needed, and ends
    #[arg(long)]
    pub dry_run: bool,
    /// Stops after this time with a checkpoint, from which --resume continues
    #[arg(long, value_name = "SECONDS")]
    pub max_seconds: Option<f64>,
}

impl TrainArgs {
    /// Returns the arguments as a recipe takes them. Ctrl-C and SIGTERM stop the run with a checkpoint.
    ///
    /// # Errors
    /// If the signal handler cannot be installed.
    pub fn recipe_args(&self) -> Result<RecipeArgs> {
        let interrupter = Interrupter::new();
        if !self.dry_run {
            stop_on_signals(&interrupter)?;
        }
        Ok(RecipeArgs {
            preset: self.preset,
            out: self.out.clone().unwrap_or_else(|| Path::new("runs").join(self.preset.name())),
            steps: self.steps,
            batch_size: self.batch_size,
            seed: self.seed,
            devices: if self.devices.is_empty() { vec![self.device.clone()] } else { self.devices.clone() },
            gradient_checkpointing: self.gradient_checkpointing,
            config: self.config.clone(),
            settings: self.settings.clone(),
            dry_run: self.dry_run,
            session: RunOptions {
                resume: self.resume,
                max_seconds: self.max_seconds,
                interrupter,
                ..Default::default()
            },
        })
    }
}

impl TrainArgs {
    /// Opens a folder, an index file or shards.
    fn open_images(&self, data: &str) -> Result<Arc<dyn TrainData>> {
        Ok(Arc::new(ImageData::open(&[data], self.workers)?))
    }
}

/// Stops a run on Ctrl-C or SIGTERM: the first signal ends it after the current step with a checkpoint, the second one
/// ends the process.
///
/// # Errors
/// If the process has another handler for these signals.
pub fn stop_on_signals(interrupter: &Interrupter) -> Result<()> {
    let interrupter = interrupter.clone();
    ctrlc::set_handler(move || {
        if interrupter.should_stop() {
            std::process::exit(130);
        }
        tracing::warn!("stopping after this step with a checkpoint; a second signal ends the process at once");
        interrupter.stop();
    })
    .map_err(|e| Error::Training(format!("cannot handle Ctrl-C and SIGTERM: {e}")))
}

/// Shows warnings and progress on standard error, or what `RUST_LOG` selects.
pub fn init_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,dalle2=info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_writer(std::io::stderr).init();
}

/// Trains CLIP: an image encoder and a text encoder that agree
#[derive(Debug, Clone, Args)]
pub struct ClipArgs {
    /// Arguments of all training commands.
    #[command(flatten)]
    pub train: TrainArgs,
    /// Pairs in memory at once: larger batches are processed in chunks, with the gradients of the full batch
    #[arg(long, value_name = "PAIRS")]
    pub chunk: Option<usize>,
    /// Starts from the image tower of this directory, for example RUN/export/image_encoder; with
    /// `--set options.task.image_tower=locked` it stays as it is
    #[arg(long, value_name = "DIR")]
    pub image_tower: Option<PathBuf>,
    /// Validates on held-out data: a share of the concepts, such as 0.1, which training then does not see, or a data set
    #[arg(long, value_name = "SHARE|DATA")]
    pub validation: Option<String>,
}

impl ClipArgs {
    /// Returns the recipe.
    ///
    /// # Errors
    /// As [`TrainArgs::recipe_args`].
    pub fn recipe(&self) -> Result<clip::Recipe> {
        let validation = match &self.validation {
            Some(text) => Validation::parse(text, |data| self.train.open_images(data))?,
            None => Validation::Training,
        };
        let args = self.train.recipe_args()?;
        Ok(clip::Recipe { args, chunk: self.chunk, image_tower: self.image_tower.clone(), validation })
    }
}

/// Trains a prior: CLIP image embeddings from captions
#[derive(Debug, Clone, Args)]
pub struct PriorArgs {
    /// Arguments of all training commands.
    #[command(flatten)]
    pub train: TrainArgs,
    /// Which prior
    #[arg(long, value_enum, default_value = "diffusion")]
    pub kind: PriorKind,
    /// Trains from embedded pairs, without CLIP
    #[arg(long, value_name = "DIR")]
    pub embeddings: Option<PathBuf>,
    /// Diffusion: the network also reads its own last estimate
    #[arg(long)]
    pub self_conditioning: bool,
    /// Diffusion: weights errors by min(signal-to-noise ratio, GAMMA)
    #[arg(long, value_name = "GAMMA")]
    pub min_snr: Option<f64>,
    /// Autoregressive: principal components; the preset's if not given
    #[arg(long, value_name = "K", conflicts_with = "explained")]
    pub components: Option<usize>,
    /// Autoregressive: the fewest components that explain this share of the variance
    #[arg(long, value_name = "SHARE")]
    pub explained: Option<f64>,
    /// Validates on held-out data: a share of the concepts, such as 0.1, which training then does not see, a data set, or a
    /// directory of embedded pairs
    #[arg(long, value_name = "SHARE|DATA")]
    pub validation: Option<String>,
}

impl PriorArgs {
    /// Returns the recipe.
    ///
    /// # Errors
    /// As [`TrainArgs::recipe_args`].
    pub fn recipe(&self) -> Result<prior::Recipe> {
        let components = self.components.map(Components::Fixed).or(self.explained.map(Components::Explained));
        Ok(prior::Recipe {
            args: self.train.recipe_args()?,
            kind: self.kind,
            self_conditioning: self.self_conditioning,
            min_snr: self.min_snr,
            components,
            validation: match &self.validation {
                Some(text) => Validation::parse(text, |data| self.open_validation(data))?,
                None => Validation::Training,
            },
        })
    }

    fn open_validation(&self, data: &str) -> Result<PriorData> {
        if Path::new(data).join("embeddings.json").is_file() {
            return Ok(PriorData::Embedded(Arc::new(EmbeddingSet::open(data)?)));
        }
        Ok(PriorData::Images(self.train.open_images(data)?))
    }
}

/// Trains the decoder: images from CLIP image embeddings and captions
#[derive(Debug, Clone, Args)]
pub struct DecoderArgs {
    /// Arguments of all training commands.
    #[command(flatten)]
    pub train: TrainArgs,
    /// Fine-tunes the trained decoder to inpaint, with channels for known pixels
    #[arg(long)]
    pub inpaint: bool,
}

impl DecoderArgs {
    /// Returns the recipe.
    ///
    /// # Errors
    /// As [`TrainArgs::recipe_args`].
    pub fn recipe(&self) -> Result<decoder::Recipe> {
        let mode = if self.inpaint { decoder::DecoderMode::Inpaint } else { decoder::DecoderMode::Generate };
        Ok(decoder::Recipe { args: self.train.recipe_args()?, mode })
    }
}

/// Trains an upsampler: four times larger images, or eight times with the second one
#[derive(Debug, Clone, Args)]
pub struct UpsamplerArgs {
    /// Arguments of all training commands.
    #[command(flatten)]
    pub train: TrainArgs,
    /// Which upsampler of the cascade
    #[arg(long, value_enum, default_value = "first")]
    pub stage: UpsamplerStage,
}

impl UpsamplerArgs {
    /// Returns the recipe.
    ///
    /// # Errors
    /// As [`TrainArgs::recipe_args`].
    pub fn recipe(&self) -> Result<upsampler::Recipe> {
        Ok(upsampler::Recipe { args: self.train.recipe_args()?, stage: self.stage })
    }
}
