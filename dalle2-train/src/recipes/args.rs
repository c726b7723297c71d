//! Arguments that all recipes take.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use dalle2_core::store::PipelineDir;
use dalle2_core::{ConfigError, Error, Result};

use super::config::{ModelConfig, PartOptions, RunConfig};
use crate::{RunOptions, resolve};
use burn::prelude::Device;

/// Sizes of the models and lengths of the runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Preset {
    /// 32 px, upsampled to 128 px, for a few dozen concepts: the quickest way through all four parts
    Tiny,
    /// The bundled model: 32 px, upsampled to 128 px, for several hundred concepts
    Emoji,
    /// Like tiny, upsampled to 64 px, in a form that converts to diffusers
    Portable,
    /// For one GPU: 64 px, upsampled to 256 px
    Small,
    /// Between small and Karlo
    Base,
    /// The sizes of Karlo v1 alpha, for CLIP ViT-L/14
    Karlo,
    /// The sizes of the paper
    Paper,
}

impl Preset {
    /// All presets, from small to large.
    pub const ALL: [Self; 7] =
        [Self::Tiny, Self::Emoji, Self::Portable, Self::Small, Self::Base, Self::Karlo, Self::Paper];

    /// Returns the name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Emoji => "emoji",
            Self::Portable => "portable",
            Self::Small => "small",
            Self::Base => "base",
            Self::Karlo => "karlo",
            Self::Paper => "paper",
        }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Preset {
    type Err = ConfigError;

    fn from_str(name: &str) -> Result<Self, ConfigError> {
        Self::ALL.into_iter().find(|preset| preset.name() == name).ok_or_else(|| {
            ConfigError::new("preset", name, format!("must be one of {}", Self::ALL.map(Self::name).join(", ")))
        })
    }
}

/// Arguments that all recipes take: the preset, where the run is written, and changes to the preset.
///
/// ```
/// use dalle2_train::recipes::{Preset, RecipeArgs};
///
/// let args = RecipeArgs::new(Preset::Tiny, "runs/mine").steps(200).set("train.learning_rate=1e-3");
/// assert_eq!(args.run_dir("decoder"), std::path::Path::new("runs/mine/decoder"));
/// ```
#[derive(Debug, Clone)]
pub struct RecipeArgs {
    /// Sizes of the models and lengths of the runs.
    pub preset: Preset,
    /// Directory of the model. Each part trains in a separate folder and installs itself into `export/`.
    pub out: PathBuf,
    /// Optimizer steps.
    pub steps: Option<u64>,
    /// Items per step.
    pub batch_size: Option<usize>,
    /// Seed of weights, data order, noise and augmentation.
    pub seed: Option<u64>,
    /// Devices by name, such as `cuda:0`; the first one holds the model.
    pub devices: Vec<String>,
    /// Recomputes cheap operations in the backward pass to save memory.
    pub gradient_checkpointing: bool,
    /// JSON file in the form of [`RunConfig`]; fields may be missing.
    pub config: Option<PathBuf>,
    /// Single settings `KEY=VALUE`, such as `train.learning_rate=1e-3`.
    pub settings: Vec<String>,
    /// Only describes the run.
    pub dry_run: bool,
    /// Options of this session. The recipe sets the pipeline directory.
    pub session: RunOptions,
}

impl RecipeArgs {
    /// Creates arguments for the model directory `out` on the default device.
    pub fn new(preset: Preset, out: impl Into<PathBuf>) -> Self {
        Self {
            preset,
            out: out.into(),
            steps: None,
            batch_size: None,
            seed: None,
            devices: vec!["default".into()],
            gradient_checkpointing: false,
            config: None,
            settings: Vec::new(),
            dry_run: false,
            session: RunOptions::default(),
        }
    }

    /// Sets the number of optimizer steps.
    pub fn steps(self, steps: u64) -> Self {
        Self { steps: Some(steps), ..self }
    }

    /// Sets the number of items per step.
    pub fn batch_size(self, batch_size: usize) -> Self {
        Self { batch_size: Some(batch_size), ..self }
    }

    /// Sets the seed.
    pub fn seed(self, seed: u64) -> Self {
        Self { seed: Some(seed), ..self }
    }

    /// Sets the device by name.
    pub fn device(self, name: impl Into<String>) -> Self {
        Self { devices: vec![name.into()], ..self }
    }

    /// Adds a setting `KEY=VALUE`.
    pub fn set(mut self, setting: impl Into<String>) -> Self {
        self.settings.push(setting.into());
        self
    }

    /// Sets the options of this session, such as [`RunOptions::resume`].
    pub fn session(self, session: RunOptions) -> Self {
        Self { session, ..self }
    }

    /// Returns the directory of a part's run.
    pub fn run_dir(&self, part: &str) -> PathBuf {
        self.out.join(part)
    }

    /// Returns the pipeline directory that the parts form together.
    pub fn export_dir(&self) -> PathBuf {
        self.out.join("export")
    }

    /// Returns the device that holds the model.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn main_device(&self) -> Result<Device> {
        dalle2_core::device(self.devices.first().map_or("default", String::as_str))
    }

    /// Returns the device that holds the model, with autodiff.
    ///
    /// # Errors
    /// As [`RecipeArgs::main_device`].
    pub fn training_device(&self) -> Result<Device> {
        let device = self.main_device()?.autodiff();
        Ok(if self.gradient_checkpointing { device.gradient_checkpointing() } else { device })
    }

    /// Returns the devices of a run on several; `None` for a run on one.
    pub(super) fn several_devices(&self) -> Result<Option<Vec<Device>>> {
        if self.devices.len() < 2 {
            return Ok(None);
        }
        self.devices.iter().map(|name| dalle2_core::device(name)).collect::<Result<_>>().map(Some)
    }

    /// Resolves the configuration of a run: `defaults`, changed by the file, the arguments and the settings.
    ///
    /// # Errors
    /// If a file, key or value is wrong.
    pub fn resolve<M: ModelConfig, O: PartOptions>(&self, defaults: RunConfig<M, O>) -> Result<RunConfig<M, O>> {
        let mut settings = Vec::new();
        settings.extend(self.steps.map(|steps| format!("train.steps={steps}")));
        settings.extend(self.batch_size.map(|size| format!("train.batch_size={size}")));
        settings.extend(self.seed.map(|seed| format!("train.seed={seed}")));
        settings.extend(self.settings.iter().cloned());
        let mut run = resolve(&defaults, self.config.as_deref(), &settings)?;
        let devices = self.devices.len();
        if !O::DIVIDES_BATCHES && devices > 1 && !run.train.accumulation.is_multiple_of(devices) {
            run.train.accumulation = devices;
        }
        run.check()?;
        Ok(run)
    }

    /// Describes a run as [`RunConfig::describe`] does, on the devices of these arguments.
    pub(super) fn describe<M: ModelConfig, O: PartOptions>(&self, run: &RunConfig<M, O>) -> Result<Outcome> {
        run.describe(self.devices.len().max(1)).map(Outcome::Described)
    }

    /// Loads a part that an earlier recipe trained, from the pipeline directory.
    pub(super) fn trained<T>(&self, folder: &str, recipe: &str, load: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        load(&self.export_dir().join(folder)).map_err(|error| {
            Error::Training(format!(
                "the {folder} must be trained first: run the recipe `{recipe}` with preset {} and output directory {} \
                 ({error})",
                self.preset,
                self.out.display()
            ))
        })
    }

    /// Returns the options of the session with the pipeline directory of the model.
    pub(super) fn session_options(&self) -> Result<RunOptions> {
        let pipeline = Some(PipelineDir::open(self.export_dir())?);
        Ok(RunOptions { pipeline, ..self.session.clone() })
    }
}

/// Result of a recipe.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// A dry run: the description of the run.
    Described(String),
    /// A training session.
    Trained(TrainSummary),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Described(text) => f.write_str(text),
            Self::Trained(summary) => summary.fmt(f),
        }
    }
}

/// Report of a training session, with where it was written.
#[derive(Debug, Clone)]
pub struct TrainSummary {
    /// Name of the part.
    pub part: String,
    /// The trainer's report.
    pub report: crate::TrainReport,
    /// Seconds of this session.
    pub seconds: f64,
    /// The run directory.
    pub run_dir: PathBuf,
    /// The pipeline directory.
    pub pipeline: PathBuf,
}

impl fmt::Display for TrainSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = &self.report;
        let overflows = match report.overflows {
            0 => String::new(),
            count => format!(", {count} skipped to lower the loss scale"),
        };
        let loss = report.loss.unwrap_or(f64::NAN);
        let (part, seconds) = (&self.part, self.seconds);
        writeln!(
            f,
            "{part}: {} steps, {} skipped{overflows}, loss {loss:.4}, {seconds:.0} s in this session",
            report.steps, report.skipped
        )?;
        if let Some(best) = &report.best {
            writeln!(f, "best validation: {} at {}", best.value, best.path.display())?;
        }
        write!(f, "run: {}; pipeline: {}", self.run_dir.display(), self.pipeline.display())
    }
}
