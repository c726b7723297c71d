//! The command line of the training examples.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use dalle2::Device;
use dalle2_emoji::Subset;
use dalle2_train::{BatchSource, Hooks, RunOptions, TrainTask, Trainer, resolve};

use super::config::{ModelConfig, Options, RunConfig};

/// How large the models are, and what they learn from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    /// A few dozen emoji at 32 px, enlarged to 128 px: the quickest way through all four parts.
    Tiny,
    /// The bundled model: several hundred emoji at 32 px, enlarged to 128 px.
    Emoji,
    /// As tiny, to 64 px, in a form that the example `convert` can write for diffusers.
    Portable,
    /// For one GPU: 64 px, enlarged to 256 px.
    Small,
    /// Between small and Karlo.
    Base,
    /// The sizes of Karlo v1 alpha, for CLIP ViT-L/14.
    Karlo,
    /// The sizes of the paper.
    Paper,
}

impl Preset {
    /// Name as on the command line.
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

/// Arguments that all training examples take.
#[derive(Debug, Clone, Args)]
pub struct TrainArgs {
    /// Sizes of the models and of the data set
    #[arg(long, value_enum, default_value = "tiny")]
    pub preset: Preset,
    /// `emoji`, or data of one's own: a folder with a .txt caption beside each image, an index (.jsonl, .csv, .parquet)
    /// or webdataset shards ("shards/{00..09}.tar"). May be given several times with weights, PATH:WEIGHT; see docs/data.md
    #[arg(long, default_value = "emoji", value_name = "emoji|PATH")]
    pub data: Vec<String>,
    /// Threads that decode images of one's own; as many as there are cores if not given
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,
    /// Which emoji: tiny, small or full; the preset's own if not given
    #[arg(long)]
    pub subset: Option<Subset>,
    /// Directory of the whole model: each part trains in a folder of its own and adds itself to DIR/export
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Optimizer steps
    #[arg(long)]
    pub steps: Option<u64>,
    /// Images per step
    #[arg(long)]
    pub batch_size: Option<usize>,
    /// Goes on from the newest checkpoint
    #[arg(long)]
    pub resume: bool,
    /// Seed of weights, data order, noise and augmentation; 0 if not given
    #[arg(long)]
    pub seed: Option<u64>,
    /// Device: default, flex, cuda:0, wgpu, …
    #[arg(long, default_value = "default")]
    pub device: String,
    /// Devices that compute a step together, such as cuda:0,cuda:1. CLIP divides each batch among them; for the other parts they
    /// take a batch each, and `train.accumulation` becomes their number unless it is a multiple of it
    #[arg(long, value_name = "A,B", value_delimiter = ',', conflicts_with = "device")]
    pub devices: Vec<String>,
    /// Computes cheap operations again in the backward pass, to keep less in memory
    #[arg(long)]
    pub gradient_checkpointing: bool,
    /// JSON file in the form of a run's config.json, which may leave out what stays as in the preset
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Changes one value, such as train.learning_rate=1e-3 or model.dropout=0.1; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
    /// Prints the configuration, the number of parameters and the memory needed, and ends
    #[arg(long)]
    pub dry_run: bool,
    /// Stops after so many seconds with a checkpoint, from which --resume goes on
    #[arg(long, value_name = "SECONDS")]
    pub max_seconds: Option<f64>,
}

impl TrainArgs {
    /// The directory of the whole model.
    pub fn out(&self) -> PathBuf {
        self.out.clone().unwrap_or_else(|| Path::new("runs").join(self.preset.name()))
    }

    /// The directory of this part's run.
    pub fn run_dir(&self, part: &str) -> PathBuf {
        self.out().join(part)
    }

    /// The pipeline directory that the parts make together.
    pub fn export_dir(&self) -> PathBuf {
        self.out().join("export")
    }

    /// The device that was asked for, the first one of several.
    pub fn device(&self) -> Result<Device> {
        Ok(dalle2::device(self.devices.first().unwrap_or(&self.device))?)
    }

    /// The same device, to train on.
    pub fn training_device(&self) -> Result<Device> {
        let device = self.device()?.autodiff();
        Ok(if self.gradient_checkpointing { device.gradient_checkpointing() } else { device })
    }

    /// The devices of `--devices`, if it was given.
    pub fn several_devices(&self) -> Result<Option<Vec<Device>>> {
        let devices = self.devices.iter().map(|name| dalle2::device(name)).collect::<dalle2::Result<Vec<_>>>()?;
        Ok(Some(devices).filter(|devices| !devices.is_empty()))
    }

    /// The configuration of a run: `defaults`, changed by the file, the options and the settings of the command line. None
    /// for a dry run, which prints it.
    pub fn resolve<M: ModelConfig, O: Options>(&self, defaults: RunConfig<M, O>) -> Result<Option<RunConfig<M, O>>> {
        let mut settings = Vec::new();
        settings.extend(self.steps.map(|steps| format!("train.steps={steps}")));
        settings.extend(self.batch_size.map(|size| format!("train.batch_size={size}")));
        settings.extend(self.seed.map(|seed| format!("train.seed={seed}")));
        settings.extend(self.settings.iter().cloned());
        let mut run = resolve(&defaults, self.config.as_deref(), &settings)?;
        if !O::DIVIDES_BATCHES && !self.devices.is_empty() && !run.train.accumulation.is_multiple_of(self.devices.len())
        {
            run.train.accumulation = self.devices.len();
        }
        run.check()?;
        if self.dry_run {
            println!("{}", run.describe(self.devices.len().max(1))?);
            return Ok(None);
        }
        Ok(Some(run))
    }

    /// How this session of the run goes.
    pub fn run_options(&self) -> RunOptions {
        RunOptions { resume: self.resume, max_seconds: self.max_seconds, ..Default::default() }
    }

    /// Trains a part in its folder, and prints how it went.
    pub fn run<C, O, M, S, H>(
        &self,
        part: &str,
        config: &RunConfig<C, O>,
        model: M,
        source: S,
        hooks: &mut H,
    ) -> Result<()>
    where
        C: ModelConfig,
        O: Options,
        M: TrainTask<Batch = S::Batch> + 'static,
        S: BatchSource + 'static,
        H: Hooks<M>,
    {
        let start = Instant::now();
        let dir = self.run_dir(part);
        let trainer = Trainer::new(config.train.clone(), &dir)
            .options(self.run_options())
            .describe("model", &config.model)?
            .describe("options", &config.options)?;
        let trained = match self.several_devices()? {
            Some(devices) if !O::DIVIDES_BATCHES => trainer.run_on(&devices, model, &source, hooks)?,
            _ => trainer.run(model, &source, hooks)?,
        };
        let report = trained.report;
        let overflows = match report.overflows {
            0 => String::new(),
            count => format!(", {count} left out to scale the loss less"),
        };
        println!(
            "{part}: {} steps, {} skipped{overflows}, loss {:.4}, {:.0} s in this session",
            report.steps,
            report.skipped,
            report.loss.unwrap_or(f64::NAN),
            start.elapsed().as_secs_f64()
        );
        if let Some(best) = report.best {
            println!("best validation: {} at {}", best.value, best.path.display());
        }
        println!("run: {}; pipeline: {}", dir.display(), self.export_dir().display());
        Ok(())
    }

    /// A part that must have been trained before, from the pipeline directory.
    pub fn trained<T>(&self, what: &str, command: &str, load: impl FnOnce(&Path) -> dalle2::Result<T>) -> Result<T> {
        let dir = self.export_dir().join(what);
        load(&dir).with_context(|| {
            let flags = self.out.as_ref().map(|out| format!(" --out {}", out.display())).unwrap_or_default();
            let preset = self.preset.name();
            format!(
                "the {what} must be trained first: cargo run --release --example {command} -- --preset {preset}{flags}"
            )
        })
    }
}

/// Shows warnings, or what RUST_LOG asks for.
pub fn init_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,dalle2=info,dalle2_core=info,dalle2_emoji=info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_writer(std::io::stderr).init();
}
