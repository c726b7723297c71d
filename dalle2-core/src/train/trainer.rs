//! The training loop.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::module::{ModuleVisitor, Param};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::prelude::*;
use burn::tensor::{FloatDType, Transaction};
use burn::train::{Interrupter, TrainStep};
use serde::Serialize;
use serde_json::{Map, Value};

use super::checkpoint::{self, Learner};
use super::display::{self, Display, Note, Range};
use super::grads::clip_global_norm;
use super::run_dir::{MetricsLog, RunDir};
use super::source::{Prefetch, mix_seed};
use super::state::TrainState;
use super::{BatchSource, DisplayMode, Hooks, LossOutput, StepRecord, TrainConfig};
use crate::{ConfigError, Error, Result};

/// Streams of [`mix_seed`] that the trainer uses itself, out of the way of small numbers that callers choose.
const DROPOUT: u64 = 0x6472_6f70_6f75_7400;

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
    config: TrainConfig,
    dir: PathBuf,
    details: Map<String, Value>,
    options: RunOptions,
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

/// One session of a run.
struct Session<'a, H> {
    trainer: &'a Trainer,
    dir: RunDir,
    config: Value,
    hooks: &'a mut H,
    log: MetricsLog,
    display: Box<dyn Display>,
    state: TrainState,
    checkpoint: Option<PathBuf>,
    /// When the session began, and the seconds of the sessions before.
    began: (Instant, f64),
}

impl<H> Session<'_, H> {
    fn train<M>(
        &mut self,
        mut learner: Learner<M>,
        mut batches: Prefetch<'_, M::Input>,
        device: &Device,
    ) -> Result<(Learner<M>, Stop)>
    where
        M: TrainStep + Module,
        M::Output: LossOutput,
        H: Hooks<M>,
    {
        let config = &self.trainer.config;
        loop {
            if let Some(stop) = self.stop() {
                return Ok((learner, stop));
            }
            let clock = Instant::now();
            let mut gathered = match self.gather(&learner.model, &mut batches, device) {
                Ok(gathered) => gathered,
                Err(error) => {
                    self.save(&learner)?;
                    return Err(error);
                }
            };
            let learning_rate = config.learning_rate_at(self.state.step);
            let share = 1.0 / config.accumulation as f64;
            let norm = clip_global_norm(&mut gathered.grads, &learner.model, share, config.max_grad_norm)?;
            let (loss, metrics) = gathered.values.read(share)?;
            let good = loss.is_finite() && norm.is_finite();
            if good {
                learner = learner.apply(learning_rate, gathered.grads);
            }
            self.state.advance(good.then_some(loss));
            self.state.seconds = self.began.1 + self.began.0.elapsed().as_secs_f64();
            let mut record = StepRecord {
                step: self.state.step,
                loss: Some(loss).filter(|v| v.is_finite()),
                learning_rate,
                grad_norm: Some(norm).filter(|v| v.is_finite()),
                skipped: self.state.skipped,
                metrics: finite(metrics),
                images_per_second: (config.batch_size * config.accumulation) as f64 / clock.elapsed().as_secs_f64(),
                seconds: self.state.seconds,
                ..Default::default()
            };
            if !good {
                self.note_skipped(&record);
            }
            if self.is_due(config.validate_every) {
                let figures = self.hooks.validate(&learner.for_hooks(), self.state.step)?;
                record.validation = finite(figures);
            }
            self.log.write(&record)?;
            self.display.step(&record);
            self.check_course()?;
            if self.is_due(Some(config.checkpoint_every)) {
                self.save(&learner)?;
            }
            if self.is_due(config.sample_every) {
                self.hooks.sample(&learner.for_hooks(), self.state.step, &self.dir.sample(self.state.step))?;
            }
        }
    }

    fn stop(&self) -> Option<Stop> {
        let options = &self.trainer.options;
        let elapsed = self.began.0.elapsed().as_secs_f64();
        if self.state.step >= self.trainer.config.steps {
            Some(Stop::Finished)
        } else if options.stop_after.is_some_and(|last| self.state.step >= last) {
            Some(Stop::StepLimit)
        } else if options.max_seconds.is_some_and(|max| elapsed >= max) {
            Some(Stop::TimeLimit)
        } else {
            options.interrupter.should_stop().then_some(Stop::Interrupted)
        }
    }

    /// Whether something that happens every so many steps happens after this one; the last step of the run always counts.
    fn is_due(&self, every: Option<u64>) -> bool {
        let step = self.state.step;
        every.is_some_and(|every| step.is_multiple_of(every) || step == self.trainer.config.steps)
    }

    /// Forward and backward through the batches of one step.
    fn gather<M>(&self, model: &M, batches: &mut Prefetch<'_, M::Input>, device: &Device) -> Result<Gathered>
    where
        M: TrainStep + Module,
        M::Output: LossOutput,
    {
        let config = &self.trainer.config;
        let mut accumulator = GradientsAccumulator::new();
        let mut values = Values::default();
        for part in 0..config.accumulation as u64 {
            let batch = batches.next()?;
            device.seed(mix_seed(config.seed, DROPOUT, self.state.step * config.accumulation as u64 + part));
            let output = model.step(batch);
            values.add(&output.item);
            accumulator.accumulate(model, output.grads);
        }
        let grads = accumulator.grads();
        if grads.is_empty() {
            let message = "no parameter has a gradient: the loss does not depend on them";
            return Err(Error::Training(message.into()));
        }
        Ok(Gathered { grads, values })
    }

    fn note_skipped(&mut self, record: &StepRecord) {
        let what = if record.loss.is_none() { "loss" } else { "gradient" };
        tracing::warn!(step = record.step, "the {what} is not finite, step skipped");
        self.display.note(Note::Skipped, &format!("step {}: the {what} is not finite, skipped", record.step));
    }

    /// Gives the run up when it cannot recover.
    fn check_course(&self) -> Result<()> {
        let config = &self.trainer.config;
        let (problem, factor) = match config.divergence_factor.and_then(|f| Some((self.state.risen(f)?, f))) {
            Some(((first, now), factor)) => (format!("the loss rose from {first:.4} to {now:.4e}"), factor.sqrt()),
            None if self.state.skipped_in_a_row >= config.max_skipped_in_a_row => {
                let count = self.state.skipped_in_a_row;
                (format!("{count} steps in a row had a loss or gradient that is not finite"), f64::INFINITY)
            }
            None => return Ok(()),
        };
        let good = match checkpoint::last_good(&self.dir, factor) {
            Some(path) => format!("the last good checkpoint is {}", path.display()),
            None => "there is no good checkpoint yet".to_string(),
        };
        Err(Error::Training(format!(
            "the run diverged: {problem} by step {}; {good}. A lower learning rate or a longer warm-up usually helps",
            self.state.step
        )))
    }

    fn save<M: Module>(&mut self, learner: &Learner<M>) -> Result<()>
    where
        H: Hooks<M>,
    {
        self.log.sync()?;
        let keep = self.trainer.config.keep_checkpoints;
        let path = checkpoint::save(&self.dir, learner, &self.state, &self.config, keep)?;
        self.display.note(Note::Checkpoint, &format!("wrote {}", path.display()));
        self.checkpoint = Some(path);
        self.dir.replace_export(|dir: &Path| self.hooks.export(&learner.for_hooks(), dir))
    }

    fn finish<M: Module>(mut self, learner: Learner<M>, stop: Stop) -> Result<Trained<M>>
    where
        H: Hooks<M>,
    {
        let name = format!("step-{}", self.state.step);
        let checkpoint = match self.checkpoint.take().filter(|path| path.ends_with(&name)) {
            Some(path) => path,
            None => {
                self.save(&learner)?;
                self.checkpoint.take().unwrap_or_default()
            }
        };
        self.display.note(Note::Stop, &format!("{stop:?} at step {}, {}", self.state.step, checkpoint.display()));
        let TrainState { step, skipped, seconds, .. } = self.state;
        let report = TrainReport { steps: step, skipped, loss: self.state.mean_loss(), seconds, checkpoint, stop };
        let ema = learner.average.as_ref().map(|average| average.model(&learner.model));
        Ok(Trained { model: learner.model.valid(), ema, report })
    }
}

impl<M: Module> Learner<M> {
    fn apply(self, learning_rate: f64, grads: GradientsParams) -> Self
    where
        M: TrainStep,
    {
        let mut optimizer = self.optimizer;
        let model = self.model.optimize(&mut optimizer, learning_rate.into(), grads);
        let average = self.average.map(|average| average.update(&model));
        Self { model, optimizer, average }
    }

    fn for_hooks(&self) -> M {
        match &self.average {
            Some(average) => average.model(&self.model),
            None => self.model.valid(),
        }
    }
}

struct Gathered {
    grads: GradientsParams,
    values: Values,
}

/// Loss and metrics, summed over the batches of a step on the device and read once.
#[derive(Default)]
struct Values {
    loss: Option<Tensor<1>>,
    metrics: BTreeMap<&'static str, Tensor<1>>,
}

impl Values {
    fn add(&mut self, output: &impl LossOutput) {
        let plain = |value: Tensor<1>| value.without_autodiff().mean().cast(FloatDType::F32);
        let loss = plain(output.loss());
        self.loss = Some(match self.loss.take() {
            Some(sum) => sum + loss,
            None => loss,
        });
        for (name, value) in output.metrics() {
            let value = plain(value);
            let sum = match self.metrics.remove(name) {
                Some(sum) => sum + value,
                None => value,
            };
            self.metrics.insert(name, sum);
        }
    }

    fn read(self, share: f64) -> Result<(f64, Vec<(String, f64)>)> {
        let mut transaction = Transaction::default();
        let names: Vec<&'static str> = self.metrics.keys().copied().collect();
        for tensor in self.loss.into_iter().chain(self.metrics.into_values()) {
            transaction = transaction.register(tensor);
        }
        let data = transaction.try_execute().map_err(|e| Error::Device(e.to_string()))?;
        let mut numbers = data.into_iter().map(|data| -> Result<f64> {
            let values = data.try_to_vec::<f32>().map_err(|e| Error::Device(e.to_string()))?;
            Ok(values.first().map_or(f64::NAN, |v| f64::from(*v)) * share)
        });
        let loss = numbers.next().unwrap_or(Ok(f64::NAN))?;
        let metrics = names.into_iter().zip(numbers).map(|(name, number)| Ok((name.to_string(), number?)));
        Ok((loss, metrics.collect::<Result<_>>()?))
    }
}

/// JSON has no other numbers.
fn finite(numbers: Vec<(String, f64)>) -> BTreeMap<String, f64> {
    numbers.into_iter().filter(|(_, value)| value.is_finite()).collect()
}

/// Draws the initial values of all parameters of `module` that have none yet, with the device's random numbers seeded by
/// `seed`.
///
/// Burn draws a parameter when it is first used; whatever random numbers are drawn before that change the model.
pub fn materialize<M: Module>(module: &M, device: &Device, seed: u64) {
    struct Touch;
    impl ModuleVisitor for Touch {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            param.val();
        }
    }
    device.seed(seed);
    module.visit(&mut Touch);
}

/// The device of the model, if it can be trained there. Draws what is not drawn yet.
fn prepare<M: Module>(model: &M, seed: u64) -> Result<Device> {
    let Some(device) = model.devices().pop() else {
        return Err(Error::Training("the model has no parameters".into()));
    };
    materialize(model, &device, seed);
    let mut survey = Survey::default();
    model.visit(&mut survey);
    match survey {
        Survey { device: Some(device), trained: true } => Ok(device),
        Survey { device: Some(_), trained: false } => {
            Err(Error::Training("all parameters of the model are frozen".into()))
        }
        Survey { device: None, .. } => {
            let expected = "the model must be built on an autodiff device: `config.init(&device.autodiff())`";
            Err(ConfigError::new("device", format!("{device:?}"), expected).into())
        }
    }
}

/// Looks for an autodiff device and for a parameter that is trained.
#[derive(Default)]
struct Survey {
    device: Option<Device>,
    trained: bool,
}

impl ModuleVisitor for Survey {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let device = param.val().device();
        if device.is_autodiff() {
            self.device = Some(device);
        }
        self.trained |= param.is_require_grad();
    }
}
