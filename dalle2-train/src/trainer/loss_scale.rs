//! Dynamic loss scaling (Micikevicius et al. 2018, arXiv 1710.03740, section 3.2).
//!
//! Small gradients become zero in f16. The loss is multiplied by a factor before it is differentiated and the gradients are
//! divided by it in f32, so that they keep to the middle of the range; the factor is as large as it can be without
//! gradients that overflow.

use serde::{Deserialize, Serialize};

use super::config::{at_least_one, check};
use dalle2_core::ConfigError;

/// How the factor on the loss is chosen; what is missing from the JSON has its default.
///
/// A step with a gradient that is not finite changes no weights and lowers the factor; many good steps raise it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossScaling {
    /// The factor of the first step. Powers of two change no digit of a gradient, as long as it is in range.
    pub initial: f64,
    /// Times this when a gradient is not finite, in (0, 1).
    pub backoff: f64,
    /// Times this after `growth_interval` good steps, above 1.
    pub growth: f64,
    /// Good steps since the factor last changed after which it grows.
    pub growth_interval: u64,
    /// The lowest factor: a gradient that is not finite there is not a matter of the factor.
    pub minimum: f64,
}

impl Default for LossScaling {
    fn default() -> Self {
        Self { initial: 65_536.0, backoff: 0.5, growth: 2.0, growth_interval: 2000, minimum: 1.0 }
    }
}

impl LossScaling {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let largest = f64::from(f32::MAX);
        check("minimum", self.minimum, self.minimum > 0.0, "must be finite and above 0")?;
        let in_range = (self.minimum..=largest).contains(&self.initial);
        check("initial", self.initial, in_range, "must be an f32 and at least the minimum")?;
        check("backoff", self.backoff, self.backoff > 0.0 && self.backoff < 1.0, "must be above 0 and below 1")?;
        check("growth", self.growth, self.growth > 1.0, "must be finite and above 1")?;
        at_least_one("growth_interval", self.growth_interval)
    }
}

/// The factor on the loss as it is now, stored with every checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LossScale {
    /// The factor of the next step.
    pub value: f64,
    /// Good steps since it last changed.
    pub good_steps: u64,
    /// Steps left out because a gradient was not finite and the factor could be lowered.
    pub overflows: u64,
}

impl LossScale {
    pub(super) fn new(scaling: &LossScaling) -> Self {
        Self { value: scaling.initial, good_steps: 0, overflows: 0 }
    }

    /// Whether a gradient that is not finite may be a matter of the factor.
    pub(super) fn can_fall(&self, scaling: &LossScaling) -> bool {
        self.value > scaling.minimum
    }

    /// After a step that was taken.
    pub(super) fn good(&mut self, scaling: &LossScaling) {
        self.good_steps += 1;
        if self.good_steps == scaling.growth_interval {
            self.good_steps = 0;
            let grown = self.value * scaling.growth;
            if grown <= f64::from(f32::MAX) {
                self.value = grown;
            }
        }
    }

    /// After a step that was left out for the factor.
    pub(super) fn overflow(&mut self, scaling: &LossScaling) {
        self.value = (self.value * scaling.backoff).max(scaling.minimum);
        self.good_steps = 0;
        self.overflows += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_after_so_many_good_steps_and_falls_at_once() {
        let scaling = LossScaling { initial: 8.0, growth_interval: 3, ..Default::default() };
        let mut scale = LossScale::new(&scaling);
        let mut values = Vec::new();
        for good in [true, true, true, true, true, false, true, true, true] {
            if good {
                scale.good(&scaling)
            } else {
                scale.overflow(&scaling)
            }
            values.push(scale.value);
        }
        assert_eq!(values, [8.0, 8.0, 16.0, 16.0, 16.0, 8.0, 8.0, 8.0, 16.0]);
        assert_eq!(scale, LossScale { value: 16.0, good_steps: 0, overflows: 1 });
    }

    #[test]
    fn it_stays_between_the_minimum_and_the_largest_number() {
        let scaling = LossScaling { initial: 8.0, growth_interval: 1, minimum: 3.0, ..Default::default() };
        let mut scale = LossScale::new(&scaling);
        (0..2).for_each(|_| scale.overflow(&scaling));
        assert_eq!(scale.value, 3.0);
        assert!(!scale.can_fall(&scaling));
        (0..500).for_each(|_| scale.good(&scaling));
        assert!((scale.value as f32).is_finite() && scale.value > 1e38, "{}", scale.value);
    }

    #[test]
    fn a_bad_value_is_named() {
        let field = |scaling: LossScaling| scaling.validate().unwrap_err().field;
        assert_eq!(field(LossScaling { initial: 0.5, ..Default::default() }), "initial");
        assert_eq!(field(LossScaling { initial: 1e39, ..Default::default() }), "initial");
        assert_eq!(field(LossScaling { backoff: 1.0, ..Default::default() }), "backoff");
        assert_eq!(field(LossScaling { growth: 1.0, ..Default::default() }), "growth");
        assert_eq!(field(LossScaling { growth_interval: 0, ..Default::default() }), "growth_interval");
        assert_eq!(field(LossScaling { minimum: 0.0, ..Default::default() }), "minimum");
        assert!(LossScaling::default().validate().is_ok());
    }
}
