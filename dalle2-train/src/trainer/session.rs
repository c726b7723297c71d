//! The training loop.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Instant;

use burn::optim::GradientsParams;
use burn::prelude::*;
use serde_json::Value;

use super::checkpoint::{self, Keep, Learner};
use super::display::{Display, Note};
use super::gather::{Gather, Gathered};
use super::grads::clip_global_norm;
use super::run_dir::{MetricsLog, RunDir};
use super::state::{Outcome, TrainState};
use super::values::finite;
use super::{BestCheckpoint, Hooks, StepRecord, Stop, TrainReport, TrainTask, Trained, Trainer};
use dalle2_core::store::{DirLock, PipelineDir};
use dalle2_core::train::panic_message;
use dalle2_core::{ConfigError, Error, Result, on_pool};

/// One session of a run.
pub(super) struct Session<'a, H: ?Sized> {
    pub trainer: &'a Trainer,
    pub dir: RunDir,
    /// Held until the session ends.
    pub _lock: DirLock,
    pub pipeline: PipelineDir,
    pub config: Value,
    pub hooks: &'a mut H,
    pub log: MetricsLog,
    pub display: Box<dyn Display>,
    pub state: TrainState,
    pub checkpoint: Option<PathBuf>,
    /// When the session began, and the seconds of the sessions before.
    pub began: (Instant, f64),
}

impl<H: ?Sized> Session<'_, H> {
    /// Trains until there is a reason to stop. When the batch source, a hook or the log fails, a checkpoint is written
    /// before the error is returned.
    pub(super) fn train<M>(&mut self, mut learner: Learner<M>, mut gather: impl Gather<M>) -> Result<(Learner<M>, Stop)>
    where
        M: TrainTask,
        H: Hooks<M>,
    {
        loop {
            if let Some(stop) = self.stop() {
                return Ok((learner, stop));
            }
            let clock = Instant::now();
            let scale = self.state.scale.map(|scale| scale.value);
            let result = match gather.gather(&learner.model, self.state.step, scale) {
                Ok(gathered) => {
                    let record;
                    (learner, record) = self.apply(learner, gathered, clock);
                    record.and_then(|record| self.after_step(&learner, record))
                }
                Err(error) => Err(error),
            };
            if let Err(error) = result {
                return Err(self.save_before(error, &learner));
            }
            // Not in `after_step`: a model that diverged must not replace the good checkpoints.
            self.check_course()?;
            if self.is_due(Some(self.trainer.config.checkpoint_every)) || self.state.is_best() {
                self.save_if_new(&learner)?;
            }
            if self.is_due(self.trainer.config.sample_every) {
                let (step, path) = (self.state.step, self.dir.sample(self.state.step));
                let model = learner.for_hooks();
                if let Err(error) = guarded("sample", || self.hooks.sample(&model, step, &path)) {
                    return Err(self.save_before(error, &learner));
                }
            }
        }
    }

    /// Validates if it is due, and logs the step. A step whose validation fails is logged without it.
    fn after_step<M: Module>(&mut self, learner: &Learner<M>, mut record: StepRecord) -> Result<()>
    where
        H: Hooks<M>,
    {
        let mut result = Ok(());
        if self.is_due(self.trainer.config.validate_every) {
            let (step, model) = (self.state.step, learner.for_hooks());
            let metrics = guarded("validate", || self.hooks.validate(&model, step));
            match metrics.and_then(|metrics| self.judge(metrics)) {
                Ok(metrics) => record.validation = metrics,
                Err(error) => result = Err(error),
            }
        }
        self.log.write(&record)?;
        self.display.step(&record);
        result
    }

    /// Writes a checkpoint of the steps done, and returns `error`.
    fn save_before<M: Module>(&mut self, error: Error, learner: &Learner<M>) -> Error {
        if self.state.step == 0 {
            return error;
        }
        match self.save_checkpoint(learner) {
            Ok(_) => error,
            Err(second) => Error::Training(format!("{error}; and the checkpoint could not be written: {second}")),
        }
    }

    /// Unscales and clips the gradients and takes the step, or skips it when a number is not finite.
    fn apply<M>(&mut self, learner: Learner<M>, gathered: Gathered, clock: Instant) -> (Learner<M>, Result<StepRecord>)
    where
        M: TrainTask,
    {
        let config = &self.trainer.config;
        let Gathered { grads, values } = gathered;
        let learning_rate = config.learning_rate_at(self.state.step);
        let share = 1.0 / config.accumulation as f64;
        let (scaling, scale) = (config.scaling(), self.state.scale.map(|scale| scale.value));
        let (factor, max_norm) = (share / scale.unwrap_or(1.0), config.max_grad_norm);
        let (learner, grads, norm) = learner.on_pool(move |learner| {
            let mut grads = grads;
            let norm = clip_global_norm(&mut grads, &learner.model, factor, max_norm);
            (learner, grads, norm)
        });
        let ((loss, metrics), norm) = match values.read(share).and_then(|values| Ok((values, norm?))) {
            Ok(read) => read,
            Err(error) => return (learner, Err(error)),
        };
        let outcome = self.state.outcome(loss, norm, scaling.as_ref());
        let learner = match outcome {
            Outcome::Taken(_) => learner.on_pool(move |learner| learner.apply(learning_rate, grads)),
            Outcome::Overflow | Outcome::NotFinite => learner,
        };
        self.state.advance(outcome, scaling.as_ref());
        self.state.seconds = self.began.1 + self.began.0.elapsed().as_secs_f64();
        let record = StepRecord {
            step: self.state.step,
            loss: Some(loss).filter(|v| v.is_finite()),
            learning_rate,
            grad_norm: Some(norm).filter(|v| v.is_finite()),
            skipped: self.state.skipped,
            loss_scale: scale,
            overflows: self.state.scale.map(|scale| scale.overflows),
            metrics: finite(metrics),
            images_per_second: (config.batch_size * config.accumulation) as f64 / clock.elapsed().as_secs_f64(),
            seconds: self.state.seconds,
            memory_mib: memory_stats::memory_stats().map(|memory| memory.physical_mem as f64 / f64::from(1 << 20)),
            ..Default::default()
        };
        match outcome {
            Outcome::Taken(_) => (),
            Outcome::Overflow => {
                tracing::debug!(
                    step = record.step,
                    scale,
                    "a gradient overflows: step left out, and the loss scaled less"
                );
            }
            Outcome::NotFinite => self.note_skipped(&record),
        }
        (learner, Ok(record))
    }

    /// Compares the metrics of a validation with the best one, if one is watched.
    fn judge(&mut self, metrics: Vec<(String, f64)>) -> Result<BTreeMap<String, f64>> {
        let Some(watch) = &self.trainer.config.watch else { return Ok(finite(metrics)) };
        if !metrics.iter().any(|(name, _)| *name == watch.metric) {
            let names: Vec<&str> = metrics.iter().map(|(name, _)| name.as_str()).collect();
            let expected = format!("must be a metric of the validation: {}", names.join(", "));
            return Err(ConfigError::new("train.watch.figure", &watch.metric, expected).into());
        }
        let metrics = finite(metrics);
        self.state.judge(watch, &metrics);
        Ok(metrics)
    }

    fn stop(&self) -> Option<Stop> {
        let options = &self.trainer.options;
        let elapsed = self.began.0.elapsed().as_secs_f64();
        let patience = self.trainer.config.watch.as_ref().and_then(|watch| watch.patience);
        if self.state.step >= self.trainer.config.steps {
            Some(Stop::Finished)
        } else if patience.is_some_and(|patience| self.state.since_best >= patience) {
            Some(Stop::NoImprovement)
        } else if options.stop_after.is_some_and(|last| self.state.step >= last) {
            Some(Stop::StepLimit)
        } else if options.max_seconds.is_some_and(|max| elapsed >= max) {
            Some(Stop::TimeLimit)
        } else {
            options.interrupter.should_stop().then_some(Stop::Interrupted)
        }
    }

    /// Whether an action of period `every` is due after this step; the last step always counts.
    fn is_due(&self, every: Option<u64>) -> bool {
        let step = self.state.step;
        every.is_some_and(|every| step.is_multiple_of(every) || step == self.trainer.config.steps)
    }

    fn note_skipped(&mut self, record: &StepRecord) {
        let what = if record.loss.is_none() { "loss" } else { "gradient" };
        tracing::warn!(step = record.step, "the {what} is not finite, step skipped");
        self.display.note(Note::Skipped, &format!("step {}: the {what} is not finite, skipped", record.step));
    }

    /// Gives the run up when it cannot recover.
    fn check_course(&self) -> Result<()> {
        let config = &self.trainer.config;
        let risen = config.divergence_factor.and_then(|factor| Some((factor, self.state.risen(factor)?)));
        let (problem, good) = if let Some((factor, (first, now))) = risen {
            // A checkpoint is good if its loss had risen less than half as far, in orders of magnitude.
            let good = checkpoint::last_good(&self.dir, factor.sqrt());
            (format!("the loss rose from {first:.4} to {now:.4e}"), good)
        } else if self.state.skipped_in_a_row >= config.max_skipped_in_a_row {
            // Skipped steps leave the weights alone, so every checkpoint is good.
            let good = checkpoint::last_good(&self.dir, f64::INFINITY);
            (format!("{} steps in a row had a loss or gradient that is not finite", self.state.skipped_in_a_row), good)
        } else {
            return Ok(());
        };
        let good = match good {
            Some(path) => format!("the last good checkpoint is {}", path.display()),
            None => "there is no good checkpoint yet".to_string(),
        };
        Err(Error::Training(format!(
            "the run diverged: {problem} by step {}; {good}. A lower learning rate or a longer warm-up usually helps",
            self.state.step
        )))
    }

    /// Writes a checkpoint of this step and exports the model, unless the step has a checkpoint. Returns the checkpoint.
    fn save_if_new<M: Module>(&mut self, learner: &Learner<M>) -> Result<PathBuf>
    where
        H: Hooks<M>,
    {
        let path = self.dir.checkpoint(self.state.step);
        if self.checkpoint.as_ref() == Some(&path) {
            return Ok(path);
        }
        let path = self.save_checkpoint(learner)?;
        if self.state.best.is_none() || self.state.is_best() {
            let model = learner.for_hooks();
            guarded("export", || self.hooks.export(&model, &mut self.pipeline))?;
        }
        Ok(path)
    }

    /// Writes a checkpoint of this step, unless it has one.
    fn save_checkpoint<M: Module>(&mut self, learner: &Learner<M>) -> Result<PathBuf> {
        let path = self.dir.checkpoint(self.state.step);
        if self.checkpoint.as_ref() == Some(&path) {
            return Ok(path);
        }
        // A log that cannot be flushed must not prevent the checkpoint.
        if let Err(error) = self.log.sync() {
            tracing::warn!(%error, "the metrics are not flushed");
        }
        let keep = Keep::new(&self.trainer.config, &self.state);
        let path = checkpoint::save(&self.dir, learner, &self.state, &self.config, keep)?;
        self.checkpoint = Some(path.clone());
        self.display.note(Note::Checkpoint, &format!("wrote {}", path.display()));
        Ok(path)
    }

    /// Makes sure there is a checkpoint of the last step, and reports.
    pub(super) fn finish<M: Module>(mut self, learner: Learner<M>, stop: Stop) -> Result<Trained<M>>
    where
        H: Hooks<M>,
    {
        let checkpoint = self.save_if_new(&learner)?;
        self.display.note(Note::Stop, &format!("{stop:?} at step {}, {}", self.state.step, checkpoint.display()));
        let TrainState { step, skipped, seconds, best, .. } = self.state;
        let best = best.map(|best| BestCheckpoint { value: best.value, path: self.dir.checkpoint(best.step) });
        let overflows = self.state.scale.map_or(0, |scale| scale.overflows);
        let loss = self.state.mean_loss();
        let report = TrainReport { steps: step, skipped, overflows, loss, seconds, checkpoint, best, stop };
        let ema = learner.average.as_ref().map(|average| average.model(&learner.model));
        Ok(Trained { model: learner.model.valid(), ema, report })
    }
}

/// Calls a hook, and turns a panic into an error.
fn guarded<T>(name: &str, call: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        Err(Error::Training(format!("the {name} hook panicked: {}", panic_message(panic.as_ref()))))
    })
}

impl<M: Module> Learner<M> {
    /// Runs operations on all parameters by [`on_pool`].
    fn on_pool<R: Send>(self, work: impl FnOnce(Self) -> R + Send) -> R {
        match self.model.devices().first().cloned() {
            Some(device) => on_pool(&device, || work(self)),
            None => work(self),
        }
    }

    fn apply(self, learning_rate: f64, grads: GradientsParams) -> Self
    where
        M: TrainTask,
    {
        let mut optimizer = self.optimizer;
        let model = optimizer.step(learning_rate, self.model, grads).after_step();
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
