//! Runs: their options, their directory, their result.

use std::fmt;
use std::path::PathBuf;
use std::time::Instant;

use burn::prelude::*;
use serde::Serialize;
use serde_json::{Map, Value};

use super::checkpoint::{self, Learner};
use super::display;
use super::gather::{ManyDevices, OneDevice};
use super::loss_scale::LossScale;
use super::precision;
use super::prepare::prepare;
use super::run_dir::{MetricsLog, RunDir};
use super::session::Session;
use super::source::Prefetch;
use super::state::TrainState;
use super::{BatchSource, DeviceThreads, DisplayMode, Hooks, Interrupter, TrainConfig, TrainTask};
use dalle2_core::store::{DirLock, PipelineDir};
use dalle2_core::{ConfigError, Error, Result};

/// Options of one session; they do not change the result of the run.
#[derive(Clone)]
pub struct RunOptions {
    /// Resumes from the newest checkpoint, if there is one. Without it, a directory with checkpoints is refused.
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
    /// Pipeline directory that [`Hooks::export`] installs parts into; `export/` in the run directory if `None`.
    pub pipeline: Option<PipelineDir>,
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
            pipeline: None,
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
            .field("pipeline", &self.pipeline)
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
    /// The watched metric has not improved for [`Watch::patience`](super::Watch::patience) validations.
    NoImprovement,
}

/// Report of a session.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainReport {
    /// Steps of the run that are done.
    pub steps: u64,
    /// How many of them were skipped because the loss or a gradient was not finite.
    pub skipped: u64,
    /// How many of them were left out only to lower the factor on the loss ([`LossScaling`](super::LossScaling)).
    pub overflows: u64,
    /// Mean loss of the last steps, at most 50; none when there was no step.
    pub loss: Option<f64>,
    /// Seconds of training, over all sessions of the run.
    pub seconds: f64,
    /// The last checkpoint.
    pub checkpoint: PathBuf,
    /// The checkpoint of the best validation, if a metric is watched and there was a validation.
    pub best: Option<BestCheckpoint>,
    /// Why the session ended.
    pub stop: Stop,
}

/// The best state of a run by the metric of [`TrainConfig::watch`]. [`read_checkpoint`](super::read_checkpoint)
/// reads it.
#[derive(Debug, Clone, PartialEq)]
pub struct BestCheckpoint {
    /// The metric.
    pub value: f64,
    /// Its checkpoint.
    pub path: PathBuf,
}

/// A trained model.
#[derive(Debug)]
pub struct Trained<M> {
    /// The model as the optimizer left it, without autodiff.
    pub model: M,
    /// The average of its weights, which is usually better, when the configuration asks for one.
    pub ema: Option<M>,
    /// The report of the session.
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
/// See the [crate documentation](crate) for an example.
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
    /// - the directory cannot be written, is in use by another run, or holds checkpoints and [`RunOptions::resume`] is
    ///   off;
    /// - the configuration is not the one that the run to be resumed was started with (the field is named);
    /// - the source or a hook fails: the run has written a checkpoint and can be resumed;
    /// - the loss diverges or stays non-finite: [`Error::Training`] names the last good checkpoint.
    ///
    /// # Panics
    /// When the model does.
    pub fn run<M, S, H>(&self, model: M, source: &S, hooks: &mut H) -> Result<Trained<M>>
    where
        M: TrainTask<Batch = S::Batch>,
        S: BatchSource + ?Sized,
        H: Hooks<M> + ?Sized,
    {
        let device = self.prepare(&model)?;
        let (mut session, learner) = self.begin(model, hooks)?;
        std::thread::scope(|scope| {
            let per_step = self.config.accumulation as u64;
            let micro_steps = session.state.step * per_step..self.last_step() * per_step;
            let batches = Prefetch::start(scope, source, device.clone(), micro_steps, self.options.prefetch)?;
            let (learner, stop) = session.train(learner, OneDevice { batches, device, config: &self.config })?;
            session.finish(learner, stop)
        })
    }

    /// As [`run`](Self::run), with the batches of a step computed on several devices at once: every device has a copy of
    /// the weights and a thread, and the gradients are summed on the first device, where the optimizer runs.
    ///
    /// [`TrainConfig::accumulation`] is the number of batches in a step and a multiple of the number of devices, and
    /// gradients are added in the order of the batches. So a run computes the same on one device and on several, apart
    /// from dropout where devices share a generator, as the CPU's do; it may be resumed on another number of devices. A
    /// loss within a batch, such as CLIP's, sees the batch of one device only.
    ///
    /// # Errors
    /// As [`run`](Self::run); when the number of devices does not divide `accumulation`, the first device is not the
    /// model's, or the model panics on a device.
    pub fn run_on<M, S, H>(&self, devices: &[Device], model: M, source: &S, hooks: &mut H) -> Result<Trained<M>>
    where
        M: TrainTask<Batch = S::Batch> + 'static,
        S: BatchSource + ?Sized,
        H: Hooks<M> + ?Sized,
    {
        let main = self.prepare(&model)?;
        self.check_devices(devices)?;
        let threads = DeviceThreads::start(&main, devices)?;
        let (mut session, learner) = self.begin(model, hooks)?;
        std::thread::scope(|scope| {
            let steps = session.state.step..self.last_step();
            let options = (&self.config, self.options.prefetch);
            let (learner, stop) =
                session.train(learner, ManyDevices::start(scope, source, threads, steps, options)?)?;
            session.finish(learner, stop)
        })
    }

    /// Checks that every device has the same number of batches per step.
    pub(super) fn check_devices(&self, devices: &[Device]) -> Result<()> {
        if devices.is_empty() || !self.config.accumulation.is_multiple_of(devices.len()) {
            let expected = format!("must be a multiple of the number of devices, {}", devices.len());
            return Err(ConfigError::new("train.accumulation", self.config.accumulation, expected).into());
        }
        Ok(())
    }

    /// Checks the configuration and the model, and gives the model's device.
    pub(super) fn prepare<M: Module>(&self, model: &M) -> Result<Device> {
        self.config.validate().map_err(|e| e.within("train"))?;
        if self.options.prefetch == 0 {
            return Err(ConfigError::new("prefetch", 0, "must be at least 1").into());
        }
        let device = prepare(model, self.config.seed)?;
        precision::check(self.config.precision, &device)?;
        Ok(device)
    }

    /// Opens the run directory, and reads the newest checkpoint on resuming.
    fn begin<'a, M: Module, H: ?Sized>(&'a self, model: M, hooks: &'a mut H) -> Result<(Session<'a, H>, Learner<M>)> {
        let lock = DirLock::acquire(&self.dir)?;
        let dir = RunDir::open(&self.dir)?;
        let pipeline = match &self.options.pipeline {
            Some(pipeline) => pipeline.clone(),
            None => PipelineDir::open(dir.export())?,
        };
        let config = self.full_config()?;
        let (learner, mut state, checkpoint) = self.start(&dir, model, &config)?;
        state.scale = self.config.scaling().map(|scaling| state.scale.unwrap_or_else(|| LossScale::new(&scaling)));
        dir.write_config(&config)?;
        let log = MetricsLog::open(&dir, state.step)?;
        let shown = display::Range {
            label: self.dir.file_name().map_or_else(|| "run".into(), |name| name.to_string_lossy().into_owned()),
            from: state.step,
            to: self.last_step(),
            log_every: self.config.log_every,
        };
        let display = display::open(self.options.display, shown, &self.options.interrupter);
        let began = (Instant::now(), state.seconds);
        Ok((
            Session {
                trainer: self,
                dir,
                _lock: lock,
                pipeline,
                config,
                hooks,
                log,
                display,
                state,
                checkpoint,
                began,
            },
            learner,
        ))
    }

    pub(super) fn full_config(&self) -> Result<Value> {
        let mut config = self.details.clone();
        let train = serde_json::to_value(&self.config).map_err(|e| Error::json(self.dir.join("config.json"), e))?;
        config.insert("train".into(), train);
        Ok(Value::Object(config))
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
