//! Counters and losses of a run.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::loss_scale::LossScale;
use super::{LossScaling, Watch};

/// Number of last losses that means use.
const RECENT: usize = 50;
/// Steps whose mean loss is where the run started from.
const FIRST: usize = 10;
/// Last steps whose mean loss is compared with the start.
const LEVEL: usize = 20;

/// Counters and losses of a run, stored with every checkpoint.
///
/// The position in the data is the step, and random numbers are functions of the seed and the step, so neither needs
/// a state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TrainState {
    /// Steps done, skipped ones included.
    pub step: u64,
    /// Steps left out because of a loss or gradient that was not finite.
    pub skipped: u64,
    /// Those of them since the last good step.
    pub skipped_in_a_row: u64,
    /// Seconds spent on the steps.
    pub seconds: f64,
    /// Mean loss of the first steps, once there are enough.
    pub first_loss: Option<f64>,
    /// Losses of the last good steps.
    pub recent: VecDeque<f64>,
    /// The best validation so far, if a metric is watched.
    #[serde(default)]
    pub best: Option<Best>,
    /// Validations since the best one.
    #[serde(default)]
    pub since_best: u64,
    /// The factor on the loss, when it is scaled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<LossScale>,
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Outcome {
    /// The optimizer took it; this was the loss.
    Taken(f64),
    /// Left out, because a gradient is not finite and a lower factor on the loss may help.
    Overflow,
    /// Skipped because the loss is not finite, or a gradient is not and a lower loss scale cannot help.
    NotFinite,
}

/// The best validation of a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Best {
    /// The step after which it took place.
    pub step: u64,
    /// The watched metric.
    pub value: f64,
}

impl TrainState {
    /// Returns the outcome of a step with this loss and gradient norm. `scaling` is the run's, if it has one.
    pub(super) fn outcome(&self, loss: f64, norm: f64, scaling: Option<&LossScaling>) -> Outcome {
        let lowers = self.scale.zip(scaling).is_some_and(|(scale, scaling)| scale.can_fall(scaling));
        match (loss.is_finite(), norm.is_finite()) {
            (true, true) => Outcome::Taken(loss),
            (true, false) if lowers => Outcome::Overflow,
            _ => Outcome::NotFinite,
        }
    }

    /// Counts a step, and adapts the factor on the loss.
    pub(super) fn advance(&mut self, outcome: Outcome, scaling: Option<&LossScaling>) {
        self.step += 1;
        let scale = self.scale.as_mut().zip(scaling);
        let loss = match outcome {
            Outcome::Taken(loss) => {
                scale.into_iter().for_each(|(scale, scaling)| scale.good(scaling));
                loss
            }
            // Neither the weights nor the losses are at fault.
            Outcome::Overflow => return scale.into_iter().for_each(|(scale, scaling)| scale.overflow(scaling)),
            Outcome::NotFinite => {
                self.skipped += 1;
                self.skipped_in_a_row += 1;
                return;
            }
        };
        self.skipped_in_a_row = 0;
        self.recent.push_back(loss);
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
        if self.first_loss.is_none() && self.recent.len() == FIRST {
            self.first_loss = self.mean_loss();
        }
    }

    /// Compares a validation after this step with the best one. A missing metric was not finite, and counts as not
    /// better.
    pub(super) fn judge(&mut self, watch: &Watch, metrics: &BTreeMap<String, f64>) {
        let better =
            metrics.get(&watch.metric).filter(|v| self.best.is_none_or(|best| watch.is_better(**v, best.value)));
        match better {
            Some(value) => (self.best, self.since_best) = (Some(Best { step: self.step, value: *value }), 0),
            None => self.since_best += 1,
        }
    }

    /// Whether this step is the one of the best validation.
    pub(super) fn is_best(&self) -> bool {
        self.best.is_some_and(|best| best.step == self.step)
    }

    /// Mean loss of the last good steps, none before the first.
    pub(super) fn mean_loss(&self) -> Option<f64> {
        mean(self.recent.iter())
    }

    /// The loss where the run started and where it is now, when the second is more than `factor` times the first.
    pub(super) fn risen(&self, factor: f64) -> Option<(f64, f64)> {
        let first = self.first_loss.filter(|loss| *loss > 0.0)?;
        let level = mean(self.recent.iter().rev().take(LEVEL)).filter(|_| self.recent.len() >= LEVEL)?;
        (level > factor * first).then_some((first, level))
    }
}

fn mean<'a>(values: impl Iterator<Item = &'a f64>) -> Option<f64> {
    let (count, sum) = values.fold((0u32, 0.0), |(count, sum), value| (count + 1, sum + value));
    (count > 0).then(|| sum / f64::from(count))
}

#[cfg(test)]
mod tests {
    use super::Outcome::{NotFinite, Overflow, Taken};
    use super::*;

    #[test]
    fn skipped_steps_count_but_leave_the_losses_alone() {
        let mut state = TrainState::default();
        for outcome in [Taken(2.0), NotFinite, NotFinite, Taken(4.0), NotFinite] {
            state.advance(outcome, None);
        }
        assert_eq!((state.step, state.skipped, state.skipped_in_a_row), (5, 3, 1));
        assert_eq!(state.mean_loss(), Some(3.0));
    }

    #[test]
    fn an_overflow_is_the_scales_until_the_scale_is_at_its_lowest() {
        let scaling = LossScaling { initial: 4.0, ..Default::default() };
        let mut state = TrainState { scale: Some(LossScale::new(&scaling)), ..Default::default() };
        let step = |state: &mut TrainState, loss: f64, norm: f64| {
            let outcome = state.outcome(loss, norm, Some(&scaling));
            state.advance(outcome, Some(&scaling));
            (outcome, state.scale.unwrap().value)
        };
        assert_eq!(step(&mut state, 1.0, f64::INFINITY), (Overflow, 2.0));
        assert_eq!(step(&mut state, f64::NAN, f64::NAN), (NotFinite, 2.0), "the loss itself is not finite");
        assert_eq!(step(&mut state, 1.0, f64::NAN), (Overflow, 1.0));
        assert_eq!(step(&mut state, 1.0, f64::NAN), (NotFinite, 1.0), "there is no lower factor");
        assert_eq!(state.scale.unwrap().overflows, 2);
        assert_eq!((state.step, state.skipped, state.skipped_in_a_row, state.recent.len()), (4, 2, 2, 0));
        assert_eq!(step(&mut state, 1.0, 3.0), (Taken(1.0), 1.0));
        assert_eq!((state.skipped_in_a_row, state.recent.len()), (0, 1));
        let plain = TrainState::default();
        assert_eq!(plain.outcome(1.0, f64::NAN, None), NotFinite);
    }

    #[test]
    fn states_from_before_there_were_scales_are_read() {
        let old =
            r#"{"step": 3, "skipped": 1, "skipped_in_a_row": 0, "seconds": 1.5, "first_loss": null, "recent": [2.0]}"#;
        let state: TrainState = serde_json::from_str(old).unwrap();
        assert_eq!((state.step, state.scale), (3, None));
        assert!(!serde_json::to_string(&state).unwrap().contains("scale"), "and nothing new is written without one");
    }

    #[test]
    fn a_loss_far_above_the_start_is_seen() {
        let mut state = TrainState::default();
        (0..100).for_each(|i| state.advance(Taken(1.0 + 0.5 * f64::from(i % 2)), None));
        assert_eq!(state.risen(2.0), None);
        (0..15).for_each(|i| state.advance(Taken(10f64.powi(i)), None));
        let (first, level) = state.risen(10.0).unwrap();
        assert!((first - 1.25).abs() < 1e-9 && level > 1e12, "{first} {level}");
        let mut negative = TrainState::default();
        (0..100).for_each(|i| negative.advance(Taken(-1.0 + f64::from(i)), None));
        assert_eq!(negative.risen(2.0).map(|_| ()), Some(()), "the mean of the first ten is 3.5");
    }
}
