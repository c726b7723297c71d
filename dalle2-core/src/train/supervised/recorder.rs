//! What happens in a run under Burn's loop: `metrics.jsonl`, the display, and when to give up.

use std::time::Instant;

use burn::module::Module;
use burn::prelude::*;
use burn::train::Interrupter;

use super::super::display::{Display, Note};
use super::super::run_dir::MetricsLog;
use super::super::state::{Outcome, TrainState};
use super::super::values::{Values, finite};
use super::super::{LossOutput, StepRecord, TrainConfig};
use crate::{Error, Result};

/// Records the steps of a run.
pub(super) struct Recorder {
    pub config: TrainConfig,
    pub log: MetricsLog,
    pub display: Box<dyn Display>,
    pub interrupter: Interrupter,
    pub state: TrainState,
    /// The device where values are added up.
    pub main: Device,
    /// Whether only steps of the main device are recorded: with data-parallel training every device takes all steps.
    pub main_only: bool,
    /// Sums of the batches since the last step, and their number.
    pub sums: (Values, u64),
    /// When the session and the step in progress began, and the seconds of the sessions before.
    pub began: (Instant, Instant, f64),
    /// What ended the run.
    pub failure: Option<Error>,
}

impl Recorder {
    /// Adds what a batch gave.
    pub fn batch(&mut self, output: &impl LossOutput) {
        if self.main_only && output.loss().device().inner() != self.main {
            return;
        }
        self.sums.0.add(output, &self.main);
        self.sums.1 += 1;
    }

    /// Records a step of the optimizer that left `model`.
    pub fn step<M: Module>(&mut self, model: &M, learning_rate: f64, norm: f64) {
        if self.main_only && model.devices().first().map(|device| device.clone().inner()) != Some(self.main.clone()) {
            return;
        }
        if let Err(error) = self.record(learning_rate, norm).and_then(|()| self.check_course()) {
            self.fail(error);
        }
    }

    /// Ends the run with an error, the first one if there are several.
    pub fn fail(&mut self, error: Error) {
        self.interrupter.stop(Some(&error.to_string()));
        self.failure.get_or_insert(error);
    }

    fn record(&mut self, learning_rate: f64, norm: f64) -> Result<()> {
        let (values, batches) = std::mem::take(&mut self.sums);
        let (loss, metrics) = values.read(1.0 / batches as f64)?;
        let outcome = if loss.is_finite() && norm.is_finite() { Outcome::Taken(loss) } else { Outcome::NotFinite };
        self.state.advance(outcome, None);
        let (session, clock, before) = self.began;
        self.state.seconds = before + session.elapsed().as_secs_f64();
        let images = (self.config.batch_size * self.config.accumulation) as f64;
        let record = StepRecord {
            step: self.state.step,
            loss: Some(loss).filter(|v| v.is_finite()),
            learning_rate,
            grad_norm: Some(norm).filter(|v| v.is_finite()),
            skipped: self.state.skipped,
            metrics: finite(metrics),
            images_per_second: images / clock.elapsed().as_secs_f64(),
            seconds: self.state.seconds,
            memory_mib: memory_stats::memory_stats().map(|memory| memory.physical_mem as f64 / f64::from(1 << 20)),
            ..Default::default()
        };
        self.began.1 = Instant::now();
        if outcome == Outcome::NotFinite {
            self.display.note(Note::Skipped, &format!("step {}: not finite", record.step));
        }
        self.display.step(&record);
        self.log.write(&record)
    }

    fn check_course(&self) -> Result<()> {
        let risen = self.config.divergence_factor.and_then(|factor| self.state.risen(factor));
        let problem = if let Some((first, now)) = risen {
            format!("the loss rose from {first:.4} to {now:.4e}")
        } else if self.state.skipped_in_a_row >= self.config.max_skipped_in_a_row {
            format!("{} steps in a row had a loss or gradient that is not finite", self.state.skipped_in_a_row)
        } else {
            return Ok(());
        };
        let checkpoint = match (self.state.step - 1) / self.config.checkpoint_every {
            0 => "there is no checkpoint yet".to_string(),
            epoch => format!("the last checkpoint is that of step {}", epoch * self.config.checkpoint_every),
        };
        Err(Error::Training(format!(
            "the run diverged: {problem} by step {}; {checkpoint}. A lower learning rate or a longer warm-up usually helps",
            self.state.step
        )))
    }
}

/// The state of a run whose steps have these records.
pub(super) fn replay(records: &[StepRecord]) -> TrainState {
    let mut state = TrainState::default();
    for record in records {
        let taken = record.grad_norm.and(record.loss);
        state.advance(taken.map_or(Outcome::NotFinite, Outcome::Taken), None);
        state.seconds = record.seconds;
    }
    state
}
