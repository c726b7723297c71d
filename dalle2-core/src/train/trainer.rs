//! Runs: their options, their directory, their result.

use std::fmt;
use std::path::PathBuf;
use std::time::Instant;

use burn::prelude::*;
use burn::train::{Interrupter, TrainStep};
use serde::Serialize;
use serde_json::{Map, Value};

use super::checkpoint::{self, Learner};
use super::display::{self, Range};
use super::prepare::prepare;
use super::run_dir::{MetricsLog, RunDir};
use super::session::Session;
use super::source::Prefetch;
use super::state::TrainState;
use super::{BatchSource, DisplayMode, Hooks, LossOutput, TrainConfig};
use crate::{ConfigError, Error, Result};

/// What concerns one session of a run and not its result.
#[derive(Clone)]
pub struct RunOptions {
    /// Go on from the newest checkpoint, if there is one. Without it, a directory with checkpoints is refused.
    pub resume: bool,
    /// Stop after this many steps of the whole run, as if interrupted there.
    pub stop_after: Option<u64>,
    /// Stop at the first step that ends this many seconds after the session began.
    pub max_seconds: Option<f64>,
    /// How progress is shown.
    pub display: DisplayMode,
    /// Batches that are prepared ahead of the one in use.
    pub prefetch: usize,
    /// Stops the run from another thread, with a checkpoint; the dashboard uses it too.
    pub interrupter: Interrupter,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            resume: false,
            stop_after: None,
            max_seconds: None,
            display: DisplayMode::Auto,
            prefetch: 2,
            interrupter: Interrupter::new(),
        }
    }
}

impl fmt::Debug for RunOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunOptions")
            .field("resume", &self.resume)
            .field("stop_after", &self.stop_after)
            .field("max_seconds", &self.max_seconds)
            .field("display", &self.display)
            .field("prefetch", &self.prefetch)
            .finish_non_exhaustive()
    }
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// All steps are done.
    Finished,
    /// [`RunOptions::stop_after`] was reached.
    StepLimit,
    /// [`RunOptions::max_seconds`] were over.
    TimeLimit,
    /// [`RunOptions::interrupter`] was used.
    Interrupted,
}

/// What a session did.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainReport {
    /// Steps of the run that are done.
    pub steps: u64,
    /// How many of them were skipped because the loss or a gradient was not finite.
    pub skipped: u64,
    /// Mean loss of the last steps, at most 50; none when there was no step.
    pub loss: Option<f64>,
    /// Seconds of training, over all sessions of the run.
    pub seconds: f64,
    /// The last checkpoint.
    pub checkpoint: PathBuf,
    /// Why the session ended.
    pub stop: Stop,
}

/// A trained model.
#[derive(Debug)]
pub struct Trained<M> {
    /// The model as the optimizer left it, without autodiff.
    pub model: M,
    /// The average of its weights, which is usually better, when the configuration asks for one.
    pub ema: Option<M>,
    /// What happened.
    pub report: TrainReport,
}

impl<M> Trained<M> {
    /// The averaged model if there is one, else the model.
    pub fn best(self) -> M {
        self.ema.unwrap_or(self.model)
    }
}

/// Trains a model step by step in a run directory.
///
/// See the [module documentation](super) for an example.
#[derive(Debug)]
pub struct Trainer {
    pub(super) config: TrainConfig,
    dir: PathBuf,
    details: Map<String, Value>,
    pub(super) options: RunOptions,
}

impl Trainer {
    /// A run with `config` in the directory `dir`, which is created.
    pub fn new(config: TrainConfig, dir: impl Into<PathBuf>) -> Self {
        Self { config, dir: dir.into(), details: Map::new(), options: RunOptions::default() }
    }

    /// Sets the options of this session.
    pub fn options(mut self, options: RunOptions) -> Self {
        self.options = options;
        self
    }

    /// Adds a part to the configuration, for example `("model", &unet_config)`. It is written to `config.json`, and a run
    /// is only resumed when all parts are the same.
    ///
    /// # Errors
    /// When the value cannot be written as JSON, or the name is `train`, which is the trainer's own.
    pub fn describe(mut self, name: &str, value: &impl Serialize) -> Result<Self> {
        if name == "train" {
            return Err(ConfigError::new("train", name, "is the name of the trainer's own configuration").into());
        }
        let value = serde_json::to_value(value).map_err(|e| Error::json(self.dir.join("config.json"), e))?;
        self.details.insert(name.to_string(), value);
        Ok(self)
    }

    /// Trains `model`, which must live on an autodiff device, with the batches of `source`.
    ///
    /// # Errors
    /// - a value of the configuration is out of range, or the model is not on an autodiff device;
    /// - the directory cannot be written, or holds checkpoints and [`RunOptions::resume`] is off;
    /// - the configuration is not the one that the run to be resumed was started with (the field is named);
    /// - the source or a hook fails: the run has written a checkpoint and can be resumed;
    /// - the loss diverges or stays non-finite: [`Error::Training`] names the last good checkpoint.
    ///
    /// # Panics
    /// When the model does.
    pub fn run<M, S, H>(&self, model: M, source: &S, hooks: &mut H) -> Result<Trained<M>>
    where
        M: TrainStep<Input = S::Batch> + Module,
        M::Output: LossOutput,
        S: BatchSource,
        H: Hooks<M>,
    {
        self.config.validate().map_err(|e| e.within("train"))?;
        if self.options.prefetch == 0 {
            return Err(ConfigError::new("prefetch", 0, "must be at least 1").into());
        }
        let device = prepare(&model, self.config.seed)?;
        let dir = RunDir::open(&self.dir)?;
        let config = self.whole_config()?;
        let (learner, state, checkpoint) = self.start(&dir, model, &config)?;
        dir.write_config(&config)?;
        let log = MetricsLog::open(&dir, state.step)?;
        let range = Range {
            label: self.dir.file_name().map_or_else(|| "run".into(), |name| name.to_string_lossy().into_owned()),
            from: state.step,
            to: self.last_step(),
            log_every: self.config.log_every,
        };
        let display = display::open(self.options.display, range, &self.options.interrupter);
        let began = (Instant::now(), state.seconds);
        let mut session = Session { trainer: self, dir, config, hooks, log, display, state, checkpoint, began };
        std::thread::scope(|scope| {
            let per_step = self.config.accumulation as u64;
            let micro_steps = session.state.step * per_step..self.last_step() * per_step;
            let batches = Prefetch::start(scope, source, device.clone(), micro_steps, self.options.prefetch)?;
            let (learner, stop) = session.train(learner, batches, &device)?;
            session.finish(learner, stop)
        })
    }

    fn whole_config(&self) -> Result<Value> {
        let mut whole = self.details.clone();
        let train = serde_json::to_value(&self.config).map_err(|e| Error::json(self.dir.join("config.json"), e))?;
        whole.insert("train".into(), train);
        Ok(Value::Object(whole))
    }

    /// The step at which this session ends at the latest.
    fn last_step(&self) -> u64 {
        self.config.steps.min(self.options.stop_after.unwrap_or(u64::MAX))
    }

    fn start<M: Module>(
        &self,
        dir: &RunDir,
        model: M,
        config: &Value,
    ) -> Result<(Learner<M>, TrainState, Option<PathBuf>)> {
        if self.options.resume {
            checkpoint::clean(dir)?;
            return checkpoint::resume(dir, model, &self.config, config);
        }
        if let Some((step, _)) = checkpoint::list(dir)?.last() {
            return Err(Error::Training(format!(
                "{} holds a run of {step} steps: resume it, or choose another directory",
                dir.root().display()
            )));
        }
        checkpoint::clean(dir)?;
        Ok((Learner::new(model, &self.config), TrainState::default(), None))
    }
}
