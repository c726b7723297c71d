//! The command line of the training examples.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use burn::module::Module;
use burn::train::TrainStep;
use clap::{Args, ValueEnum};
use dalle2::Device;
use dalle2::core::train::{BatchSource, Hooks, LossOutput, RunOptions, TrainConfig, Trainer};
use dalle2_emoji::Subset;
use serde::Serialize;

/// How large the models are, and what they learn from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    /// A few dozen emoji at 32 px, enlarged to 128 px: the quickest way through all four parts.
    Tiny,
    /// The bundled model: several hundred emoji at 32 px, enlarged to 128 px.
    Emoji,
    /// As tiny, to 64 px, in a form that the example `convert` can write for diffusers.
    Portable,
}

impl Preset {
    /// Name as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Emoji => "emoji",
            Self::Portable => "portable",
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
    /// Seed of weights, data order, noise and augmentation
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Device: default, flex, cuda:0, wgpu, …
    #[arg(long, default_value = "default")]
    pub device: String,
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

    /// The device that was asked for.
    pub fn device(&self) -> Result<Device> {
        Ok(dalle2::device(&self.device)?)
    }

    /// `defaults` with what the command line overrides.
    pub fn train_config(&self, defaults: TrainConfig) -> TrainConfig {
        TrainConfig {
            steps: self.steps.unwrap_or(defaults.steps),
            batch_size: self.batch_size.unwrap_or(defaults.batch_size),
            seed: self.seed,
            ..defaults
        }
    }

    /// How this session of the run goes.
    pub fn run_options(&self) -> RunOptions {
        RunOptions { resume: self.resume, max_seconds: self.max_seconds, ..Default::default() }
    }

    /// Trains a part in its folder, and prints how it went.
    pub fn run<M, S, H>(
        &self,
        part: &str,
        train: TrainConfig,
        model_config: &impl Serialize,
        model: M,
        source: &S,
        hooks: &mut H,
    ) -> Result<()>
    where
        M: TrainStep<Input = S::Batch> + Module,
        M::Output: LossOutput,
        S: BatchSource,
        H: Hooks<M>,
    {
        let start = Instant::now();
        let dir = self.run_dir(part);
        let trainer = Trainer::new(train, &dir).options(self.run_options()).describe("model", model_config)?;
        let report = trainer.run(model, source, hooks)?.report;
        println!(
            "{part}: {} steps, {} skipped, loss {:.4}, {:.0} s in this session",
            report.steps,
            report.skipped,
            report.loss.unwrap_or(f64::NAN),
            start.elapsed().as_secs_f64()
        );
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
