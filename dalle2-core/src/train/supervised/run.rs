//! A run under Burn's loop.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use burn::module::{Module, ModuleDisplay};
use burn::prelude::*;
use burn::tensor::GradientCheckpointingStrategy;
use burn::train::checkpoint::KeepLastNCheckpoints;
use burn::train::metric::{Adaptor, LossInput, LossMetric};
use burn::train::{InferenceStep, Learner, LearningResult, SupervisedTraining, TrainStep};
use serde_json::Value;

use super::super::display::{self, Note};
use super::super::run_dir::{MetricsLog, RunDir, check_same_config, read_metrics};
use super::super::threads::panic_message;
use super::super::trainer::{Stop, TrainReport, Trained, Trainer};
use super::super::values::Values;
use super::super::{BatchSource, Hooks, LossOutput, SourceLoader, TrainTask, checkpoint, optimizer};
use super::quiet::Quiet;
use super::rate::ConfiguredRate;
use super::recorder::{Recorder, replay};
use super::task::{Shared, Supervised};
use super::{DeviceStrategy, check_supervised};
use crate::store::read_json;
use crate::{ConfigError, Error, Result};

/// Batches of the validation that Burn's loop makes after each epoch: the first ones of the source, without dropout.
const VALIDATION: u64 = 2;

/// The folder of a run in which Burn's loop keeps what it writes.
const FOLDER: &str = "burn";

impl Trainer {
    /// As [`run_on`](Self::run_on), under Burn's own loop (`SupervisedTraining`) with the strategy of
    /// [`DeviceStrategy::of`]. CUDA devices train data-parallel: every device has its own weights and optimizer, and only
    /// gradients travel.
    ///
    /// [`TrainConfig::checkpoint_every`](super::super::TrainConfig::checkpoint_every) steps are an epoch. Burn's checkpoints
    /// and logs are in the folder `burn` of the run, `metrics.jsonl` and `config.json` where the trainer has them. With
    /// [`Ddp`](DeviceStrategy::Ddp), the losses in `metrics.jsonl` are those of the first device's batches. An epoch's batches
    /// are divided among the devices in as many pieces, so a step has other batches than with [`run_on`](Self::run_on).
    ///
    /// What Burn's loop does not do: it keeps no average of the weights, calls [`Hooks::export`] once, after the last step,
    /// and no other hook; a run that was stopped goes on from its last whole epoch, on the CPU with the same result as if
    /// it had not been stopped, but for dropout, which is not seeded by the step; and batches are made when they are
    /// needed, not ahead.
    ///
    /// # Errors
    /// - a value of the configuration is out of range, or Burn's loop would leave it out ([`check_supervised`]); or
    ///   [`RunOptions::stop_after`](super::super::RunOptions::stop_after) or
    ///   [`RunOptions::max_seconds`](super::super::RunOptions::max_seconds) is set;
    /// - the number of devices does not divide [`TrainConfig::accumulation`](super::super::TrainConfig::accumulation), or the
    ///   first device is not the model's;
    /// - the directory cannot be written, holds a run of the trainer, or a run of Burn's loop and
    ///   [`RunOptions::resume`](super::super::RunOptions::resume) is off;
    /// - the run to be resumed has another configuration, or the length of its epochs is another;
    /// - the source, the device, a checkpoint or the model fails, or the loss diverges.
    pub fn run_supervised<M, S, H>(
        &self,
        devices: &[Device],
        model: M,
        source: Arc<S>,
        hooks: &mut H,
    ) -> Result<Trained<M>>
    where
        M: TrainTask<Input = S::Batch> + InferenceStep<Input = S::Batch> + ModuleDisplay + 'static,
        <M as TrainStep>::Output: LossOutput + Adaptor<LossInput>,
        <M as InferenceStep>::Output: Adaptor<LossInput>,
        S: BatchSource + 'static,
        H: Hooks<M>,
    {
        let main = self.check_run(devices, &model)?;
        let run = Run::open(self, devices, &main)?;
        let shared = Shared::new(run.recorder(self)?, run.share(self), self.config.max_grad_norm);
        let model = run.restore(Supervised::new(model, shared.clone()))?;
        let optimizer = optimizer(&self.config, &model.task);
        let learner = Learner::new(model, optimizer, ConfiguredRate::new(self.config.clone()));
        let launched = catch_unwind(AssertUnwindSafe(|| run.training(self, source).launch(learner)));
        let result = launched.map_err(|panic| {
            Error::Training(format!(
                "{}: Burn's training loop failed: {}",
                run.dir.root().display(),
                panic_message(panic.as_ref())
            ))
        })?;
        run.finish(self, result, &shared, hooks)
    }

    /// Refuses what Burn's loop cannot do, and gives the model's device.
    fn check_run<M: Module>(&self, devices: &[Device], model: &M) -> Result<Device> {
        check_supervised(&self.config).map_err(|e| e.within("train"))?;
        let expected = "must not be set under Burn's loop, which would lose the epoch";
        if let Some(step) = self.options.stop_after {
            return Err(ConfigError::new("stop_after", step, expected).into());
        }
        if let Some(seconds) = self.options.max_seconds {
            return Err(ConfigError::new("max_seconds", seconds, expected).into());
        }
        let main = self.prepare(model)?;
        self.check_devices(devices)?;
        if devices[0].clone().inner() != main.clone().inner() {
            let expected = format!("the model is on {main:?}: the first device must be its own");
            return Err(ConfigError::new("devices", format!("{devices:?}"), expected).into());
        }
        Ok(main)
    }
}

/// One session of a run under Burn's loop.
struct Run {
    dir: RunDir,
    devices: Vec<Device>,
    strategy: DeviceStrategy,
    gradient_checkpointing: bool,
    /// Whole epochs that are done.
    done: u64,
    began: Instant,
}

impl Run {
    /// Opens the directory of the run, and finds the newest checkpoint on resuming.
    fn open(trainer: &Trainer, devices: &[Device], main: &Device) -> Result<Self> {
        let dir = RunDir::open(trainer.dir())?;
        let root = dir.root().display().to_string();
        if let Some((step, _)) = checkpoint::list(&dir)?.last() {
            let message =
                format!("{root} holds a run of {step} steps of the trainer, which Burn's loop cannot go on with");
            return Err(Error::Training(format!("{message}: choose another directory")));
        }
        let config = trainer.whole_config()?;
        let done = epochs(&checkpoints(dir.root()))?;
        match done {
            0 => (),
            _ if trainer.options.resume => {
                let path = dir.root().join("config.json");
                let stored = read_json::<Value>(&path)?;
                check_same_config(&path, &stored, &config)?;
                check_epoch(&path, &stored, &config)?;
            }
            _ => {
                let message = format!("{root} holds a run of {done} epochs: resume it, or choose another directory");
                return Err(Error::Training(message));
            }
        }
        dir.write_config(&config)?;
        let plain: Vec<Device> = devices.iter().map(|device| device.clone().inner()).collect();
        let gradient_checkpointing =
            matches!(main.gradient_checkpointing_strategy(), Some(GradientCheckpointingStrategy::Balanced));
        let strategy = DeviceStrategy::of(&plain);
        Ok(Self { dir, devices: plain, strategy, gradient_checkpointing, done, began: Instant::now() })
    }

    /// The model of the checkpoint that the session goes on from. Burn reads it too, but later: the groups of the optimizer
    /// are made of the identities of parameters, which a checkpoint brings along.
    fn restore<M: Module + ModuleDisplay>(&self, model: Supervised<M>) -> Result<Supervised<M>> {
        match self.done {
            0 => Ok(model),
            done => checkpoint::load_model(&checkpoints(self.dir.root()), &model_file(done), model),
        }
    }

    fn share(&self, trainer: &Trainer) -> f64 {
        self.strategy.share(trainer.config.accumulation, self.devices.len())
    }

    fn recorder(&self, trainer: &Trainer) -> Result<Recorder> {
        let config = trainer.config.clone();
        let step = self.done * config.checkpoint_every;
        let log = MetricsLog::open(&self.dir, step)?;
        let state = replay(&read_metrics(self.dir.metrics())?);
        if state.step != step {
            let message = format!("has {} steps, and the checkpoint is that of step {step}", state.step);
            return Err(Error::format(self.dir.metrics(), message));
        }
        let shown = display::Range {
            label: trainer.dir().file_name().map_or_else(|| "run".into(), |name| name.to_string_lossy().into_owned()),
            from: step,
            to: config.steps,
            log_every: config.log_every,
        };
        Ok(Recorder {
            display: display::open(trainer.options.display, shown, &trainer.options.interrupter),
            interrupter: trainer.options.interrupter.clone(),
            began: (self.began, self.began, state.seconds),
            main: self.devices[0].clone(),
            main_only: self.strategy == DeviceStrategy::Ddp,
            sums: (Values::default(), 0),
            failure: None,
            config,
            log,
            state,
        })
    }

    /// Burn's loop, ready to be launched.
    fn training<M, S>(&self, trainer: &Trainer, source: Arc<S>) -> SupervisedTraining<Supervised<M>>
    where
        M: TrainTask<Input = S::Batch> + InferenceStep<Input = S::Batch> + ModuleDisplay + 'static,
        <M as TrainStep>::Output: LossOutput + Adaptor<LossInput>,
        <M as InferenceStep>::Output: Adaptor<LossInput>,
        S: BatchSource + 'static,
    {
        let config = &trainer.config;
        let batches = config.checkpoint_every * config.accumulation as u64;
        let device = &self.devices[0];
        let training = Arc::new(SourceLoader::training(source.clone(), batches, self.done, &device.clone().autodiff()));
        let validation = Arc::new(SourceLoader::validation(source, VALIDATION, device));
        let mut burn = SupervisedTraining::new(self.dir.root().join(FOLDER), training, validation)
            .metrics((LossMetric::new(),))
            .renderer(Box::new(Quiet))
            .with_application_logger(None)
            .with_interrupter(trainer.options.interrupter.clone())
            .with_default_checkpointers()
            .with_checkpointing_strategy(KeepLastNCheckpoints::new(config.keep_checkpoints))
            .with_training_strategy(self.strategy.execution(self.devices.clone()).into())
            .grads_accumulation(config.accumulation / self.devices.len())
            .num_epochs((config.steps / config.checkpoint_every) as usize);
        if self.gradient_checkpointing {
            burn = burn.gradient_checkpointing();
        }
        if self.done > 0 { burn.checkpoint(self.done as usize) } else { burn }
    }

    /// Exports the model, unless the run was stopped, and reports.
    fn finish<M, H>(
        &self,
        trainer: &Trainer,
        result: LearningResult<Supervised<M>>,
        shared: &Shared,
        hooks: &mut H,
    ) -> Result<Trained<M>>
    where
        M: Module + ModuleDisplay,
        H: Hooks<M>,
    {
        let mut recorder = shared.recorder();
        if let Some(error) = recorder.failure.take() {
            return Err(error);
        }
        if let Some(error) = result.error {
            return Err(Error::Training(format!("{}: {error}", self.dir.root().display())));
        }
        let model = result.model.task;
        let stop = if recorder.state.step < trainer.config.steps { Stop::Interrupted } else { Stop::Finished };
        if stop == Stop::Finished {
            self.dir.replace_export(|dir: &Path| hooks.export(&model, dir))?;
        }
        let folder = checkpoints(self.dir.root());
        let checkpoint = folder.join(model_file(epochs(&folder)?));
        let step = recorder.state.step;
        recorder.display.note(Note::Stop, &format!("{stop:?} at step {step}, {}", checkpoint.display()));
        let (state, loss) = (&recorder.state, recorder.state.mean_loss());
        let (skipped, seconds) = (state.skipped, state.seconds);
        let report = TrainReport { steps: step, skipped, overflows: 0, loss, seconds, checkpoint, best: None, stop };
        Ok(Trained { model, ema: None, report })
    }
}

fn checkpoints(root: &Path) -> PathBuf {
    root.join(FOLDER).join("checkpoint")
}

fn model_file(epoch: u64) -> String {
    format!("model-{epoch}.bpk")
}

/// The last epoch of which Burn has written model, optimizer and learning rate, 0 if there is none.
fn epochs(folder: &Path) -> Result<u64> {
    let mut last = 0;
    if !folder.exists() {
        return Ok(last);
    }
    for entry in fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let name = entry.map_err(|e| Error::io(folder, e))?.file_name();
        let epoch = name.to_str().and_then(|name| name.strip_prefix("scheduler-")?.strip_suffix(".bpk")?.parse().ok());
        let whole =
            |epoch: &u64| ["model", "optim"].iter().all(|part| folder.join(format!("{part}-{epoch}.bpk")).exists());
        last = epoch.filter(whole).map_or(last, |epoch: u64| last.max(epoch));
    }
    Ok(last)
}

/// Refuses a directory with a run of Burn's loop, which the trainer cannot go on with.
pub(in super::super) fn refuse_run(root: &Path) -> Result<()> {
    match epochs(&checkpoints(root))? {
        0 => Ok(()),
        done => Err(Error::Training(format!(
            "{} holds a run of {done} epochs under Burn's loop, which the trainer cannot go on with: choose another directory",
            root.display()
        ))),
    }
}

/// Refuses to go on with epochs of another length, which would be other batches.
fn check_epoch(path: &Path, stored: &Value, current: &Value) -> Result<()> {
    let length = |config: &Value| config["train"]["checkpoint_every"].to_string();
    let (old, new) = (length(stored), length(current));
    if old == new {
        return Ok(());
    }
    Err(Error::Training(format!(
        "{} was written with `train.checkpoint_every` = {old}, the length of an epoch, and now it is {new}: resume with the \
         old value, or start a new run",
        path.display()
    )))
}
