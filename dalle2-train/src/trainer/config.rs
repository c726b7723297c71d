//! The configuration of a training run: length, optimizer, schedule and how often files are written.

use serde::{Deserialize, Serialize};

use super::LossScaling;
use dalle2_core::ConfigError;
use dalle2_core::FloatType;

/// The learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// Stays at [`TrainConfig::learning_rate`].
    Constant,
    /// Half a cosine from [`TrainConfig::learning_rate`] at the end of the warm-up to `final_fraction` of it at the last
    /// step (SGDR, Loshchilov and Hutter 2017, without restarts); it stays there past the end.
    Cosine {
        /// The last learning rate as a fraction of the first, in [0, 1].
        final_fraction: f64,
    },
    /// Half cosines one after the other, each from [`TrainConfig::learning_rate`] to `final_fraction` of it (SGDR, Loshchilov
    /// and Hutter 2017, with restarts).
    CosineRestarts {
        /// Steps of the first half cosine, at least 2.
        period: u64,
        /// Factor on the length from each half cosine to the next, at least 1.
        growth: u64,
        /// The lowest learning rate as a fraction of the highest, in [0, 1].
        final_fraction: f64,
    },
    /// Falls with the inverse square root of the step, from [`TrainConfig::learning_rate`] at the end of the warm-up
    /// (Vaswani et al. 2017, section 5.3). It does not depend on the number of steps.
    InverseSqrt,
}

/// Whether a lower or a higher metric is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// Smaller is better, as for a loss.
    Lowest,
    /// Larger is better, as for a recall.
    Highest,
}

/// The validation metric that selects the best state of the model.
///
/// The checkpoint of the best validation stays besides the newest ones, and `export/` holds that state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// Name of the metric, as [`Hooks::validate`](super::Hooks::validate) returns it; `figure` in JSON.
    #[serde(rename = "figure")]
    pub metric: String,
    /// Whether a lower or a higher value is better.
    pub goal: Goal,
    /// The run ends after this many validations in a row without a better one; `None` never ends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<u64>,
}

impl Watch {
    /// Whether `value` is better than `best`.
    pub fn is_better(&self, value: f64, best: f64) -> bool {
        match self.goal {
            Goal::Lowest => value < best,
            Goal::Highest => value > best,
        }
    }
}

/// Configuration of a training run, written to `config.json` in the run directory.
///
/// Fields that are missing from the JSON have their default; unknown ones are refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Optimizer steps in all.
    pub steps: u64,
    /// Items in one batch of the source. The trainer uses it for the throughput; the source does the batching.
    pub batch_size: usize,
    /// Batches whose gradients are averaged into one optimizer step.
    pub accumulation: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Steps over which the learning rate rises linearly from 0 to its peak.
    pub warmup: u64,
    /// The learning rate after the warm-up.
    pub schedule: Schedule,
    /// AdamW's decay rate of the first moment.
    pub beta_1: f64,
    /// AdamW's decay rate of the second moment.
    pub beta_2: f64,
    /// AdamW's ε.
    pub epsilon: f64,
    /// Decoupled weight decay. Vectors (biases, norms) and embedding tables are left out.
    pub weight_decay: f64,
    /// Largest norm of all gradients together; larger ones are scaled down to it. `None` never scales.
    pub max_grad_norm: Option<f64>,
    /// Decay of the moving average of the weights, warmed up as min(decay, (1 + n) / (10 + n)); `None` keeps none.
    pub ema_decay: Option<f64>,
    /// The element type of the forward and backward pass.
    ///
    /// Weights, summed gradients, the optimizer's moments, the average of the weights and checkpoints are f32 in any case.
    /// In the 16-bit types each step works on a cast copy of the weights, so the model must cast its inputs to their type.
    /// In f16 the loss is scaled, see [`LossScaling`].
    pub precision: FloatType,
    /// The factor on the loss. `None` scales it in f16 only, with the defaults.
    pub loss_scaling: Option<LossScaling>,
    /// Seed of everything random in the run.
    pub seed: u64,
    /// Steps between two lines on a display without a progress bar.
    pub log_every: u64,
    /// Steps between two checkpoints; the last step always has one.
    pub checkpoint_every: u64,
    /// Number of newest checkpoints that stay; older ones are deleted, except as the next two fields say.
    pub keep_checkpoints: usize,
    /// Checkpoints at multiples of this step are never deleted; `None` deletes all old ones.
    pub keep_every: Option<u64>,
    /// Selects the best checkpoint, which stays too, and early stopping; `None` disables both.
    pub watch: Option<Watch>,
    /// Steps between two calls of [`Hooks::sample`](super::Hooks::sample), which is also called after the last step;
    /// `None` never calls it.
    pub sample_every: Option<u64>,
    /// Steps between two calls of [`Hooks::validate`](super::Hooks::validate), which is also called after the last step;
    /// `None` never calls it.
    pub validate_every: Option<u64>,
    /// Consecutive steps with a non-finite loss or gradient after which the run is given up.
    pub max_skipped_in_a_row: u64,
    /// The run is given up when the smoothed loss exceeds this many times the loss of the first steps; `None` never.
    /// Only for losses that start above zero.
    pub divergence_factor: Option<f64>,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            steps: 1000,
            batch_size: 16,
            accumulation: 1,
            learning_rate: 1e-4,
            warmup: 100,
            schedule: Schedule::Cosine { final_fraction: 0.0 },
            beta_1: 0.9,
            beta_2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: Some(1.0),
            ema_decay: Some(0.9999),
            precision: FloatType::F32,
            loss_scaling: None,
            seed: 0,
            log_every: 50,
            checkpoint_every: 500,
            keep_checkpoints: 2,
            keep_every: None,
            watch: None,
            sample_every: None,
            validate_every: None,
            max_skipped_in_a_row: 25,
            divergence_factor: Some(10.0),
        }
    }
}

/// The fields that may change between two sessions of one run: how long it is and what it writes, not what it computes.
pub(super) const MAY_CHANGE: [&str; 8] = [
    "train.steps",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.keep_every",
    "train.sample_every",
    "train.validate_every",
    "train.max_skipped_in_a_row",
];

impl TrainConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        at_least_one("steps", self.steps)?;
        at_least_one("batch_size", self.batch_size as u64)?;
        at_least_one("accumulation", self.accumulation as u64)?;
        if self
            .steps
            .checked_mul(self.accumulation as u64)
            .and_then(|n| n.checked_mul(self.batch_size as u64))
            .is_none()
        {
            let expected = "times accumulation and batch_size must fit into 64 bits";
            return Err(ConfigError::new("steps", self.steps, expected));
        }
        at_least_one("log_every", self.log_every)?;
        at_least_one("checkpoint_every", self.checkpoint_every)?;
        at_least_one("keep_checkpoints", self.keep_checkpoints as u64)?;
        at_least_one("keep_every", self.keep_every.unwrap_or(1))?;
        at_least_one("sample_every", self.sample_every.unwrap_or(1))?;
        at_least_one("validate_every", self.validate_every.unwrap_or(1))?;
        at_least_one("max_skipped_in_a_row", self.max_skipped_in_a_row)?;
        check("learning_rate", self.learning_rate, self.learning_rate > 0.0, "must be finite and above 0")?;
        check("epsilon", self.epsilon, self.epsilon > 0.0, "must be finite and above 0")?;
        check("weight_decay", self.weight_decay, self.weight_decay >= 0.0, "must be finite and at least 0")?;
        for (field, beta) in [("beta_1", self.beta_1), ("beta_2", self.beta_2)] {
            check(field, beta, (0.0..1.0).contains(&beta), "must be in [0, 1)")?;
        }
        if let Some(norm) = self.max_grad_norm {
            check("max_grad_norm", norm, norm > 0.0, "must be finite and above 0, or null")?;
        }
        if let Some(decay) = self.ema_decay {
            check("ema_decay", decay, (0.0..1.0).contains(&decay), "must be in [0, 1), or null")?;
        }
        if let Some(factor) = self.divergence_factor {
            check("divergence_factor", factor, factor > 1.0, "must be finite and above 1, or null")?;
        }
        if let Some(scaling) = &self.loss_scaling {
            scaling.validate().map_err(|e| e.within("loss_scaling"))?;
        }
        if let Some(watch) = &self.watch {
            at_least_one("watch.patience", watch.patience.unwrap_or(1))?;
            if self.validate_every.is_none() {
                let expected = "needs validate_every: a metric of the validation is watched";
                return Err(ConfigError::new("watch.figure", &watch.metric, expected));
            }
        }
        self.schedule.validate().map_err(|e| e.within("schedule"))
    }

    /// How the loss is scaled, if it is.
    pub fn scaling(&self) -> Option<LossScaling> {
        self.loss_scaling.or_else(|| (self.precision == FloatType::F16).then(LossScaling::default))
    }

    /// The learning rate of step `step`, where the first step is 0.
    pub fn learning_rate_at(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.learning_rate * (step + 1) as f64 / self.warmup as f64;
        }
        match self.schedule {
            Schedule::Constant => self.learning_rate,
            Schedule::Cosine { final_fraction } => {
                let length = self.steps.saturating_sub(self.warmup + 1).max(1) as f64;
                let progress = ((step - self.warmup) as f64 / length).min(1.0);
                self.learning_rate * half_cosine(progress, final_fraction)
            }
            Schedule::CosineRestarts { period, growth, final_fraction } => {
                let (mut length, mut at) = (period, step - self.warmup);
                at = if growth == 1 { at % length } else { at };
                while at >= length {
                    at -= length;
                    length = length.saturating_mul(growth);
                }
                self.learning_rate * half_cosine(at as f64 / (length - 1) as f64, final_fraction)
            }
            Schedule::InverseSqrt => {
                let warmup = self.warmup.max(1);
                self.learning_rate * (warmup as f64 / (step + 1) as f64).sqrt()
            }
        }
    }
}

impl Schedule {
    fn validate(&self) -> Result<(), ConfigError> {
        let fraction = |field: &str, value: f64| check(field, value, (0.0..=1.0).contains(&value), "must be in [0, 1]");
        match *self {
            Self::Constant | Self::InverseSqrt => Ok(()),
            Self::Cosine { final_fraction } => fraction("cosine.final_fraction", final_fraction),
            Self::CosineRestarts { period, growth, final_fraction } => {
                if period < 2 {
                    return Err(ConfigError::new("cosine_restarts.period", period, "must be at least 2"));
                }
                at_least_one("cosine_restarts.growth", growth)?;
                fraction("cosine_restarts.final_fraction", final_fraction)
            }
        }
    }
}

/// From 1 at progress 0 to `last` at progress 1.
fn half_cosine(progress: f64, last: f64) -> f64 {
    last + (1.0 - last) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
}

pub(super) fn at_least_one(field: &str, value: u64) -> Result<(), ConfigError> {
    if value == 0 { Err(ConfigError::new(field, value, "must be at least 1")) } else { Ok(()) }
}

pub(super) fn check(field: &str, value: f64, in_range: bool, expected: &str) -> Result<(), ConfigError> {
    if value.is_finite() && in_range { Ok(()) } else { Err(ConfigError::new(field, value, expected)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_and_cosine_follow_their_formulas() {
        let config = TrainConfig {
            steps: 111,
            warmup: 10,
            learning_rate: 2.0,
            schedule: Schedule::Cosine { final_fraction: 0.1 },
            ..Default::default()
        };
        let at = |step| config.learning_rate_at(step);
        assert!((at(0) - 0.2).abs() < 1e-12);
        assert!((at(9) - 2.0).abs() < 1e-12);
        assert!((at(10) - 2.0).abs() < 1e-12);
        assert!((at(60) - 2.0 * 0.55).abs() < 1e-12, "half way: the mean of first and last");
        assert!((at(110) - 0.2).abs() < 1e-12, "the last step");
        assert!((at(1000) - 0.2).abs() < 1e-12, "past the end");
    }

    #[test]
    fn constant_stays() {
        let config = TrainConfig { schedule: Schedule::Constant, warmup: 0, learning_rate: 0.5, ..Default::default() };
        assert_eq!(config.learning_rate_at(0), 0.5);
        assert_eq!(config.learning_rate_at(10_000), 0.5);
    }

    #[test]
    fn restarts_begin_at_the_top_and_grow_longer() {
        let schedule = Schedule::CosineRestarts { period: 11, growth: 2, final_fraction: 0.1 };
        let config = TrainConfig { schedule, warmup: 5, learning_rate: 2.0, ..Default::default() };
        let at = |step| config.learning_rate_at(step);
        for top in [5, 16, 38, 82] {
            assert!((at(top) - 2.0).abs() < 1e-12, "step {top}: {}", at(top));
            assert!(top == 5 || (at(top - 1) - 0.2).abs() < 1e-12, "before {top}: {}", at(top - 1));
        }
        assert!((at(10) - 2.0 * 0.55).abs() < 1e-12, "half way through the first");
        assert!((at(u64::from(u32::MAX)) - 1.1).abs() <= 0.9, "far past the end it is still in range");
    }

    #[test]
    fn the_inverse_square_root_goes_on_from_the_warm_up() {
        let config =
            TrainConfig { schedule: Schedule::InverseSqrt, warmup: 100, learning_rate: 0.5, ..Default::default() };
        assert!((config.learning_rate_at(99) - 0.5).abs() < 1e-12);
        assert!((config.learning_rate_at(399) - 0.25).abs() < 1e-12, "four times the steps, half the rate");
        assert!((config.learning_rate_at(9_999) - 0.05).abs() < 1e-12);
        let cold = TrainConfig { warmup: 0, ..config };
        assert_eq!(cold.learning_rate_at(0), 0.5);
        assert_eq!(cold.learning_rate_at(3), 0.25);
    }

    #[test]
    fn a_bad_value_is_named() {
        let field = |config: TrainConfig| config.validate().unwrap_err().field;
        assert_eq!(field(TrainConfig { accumulation: 0, ..Default::default() }), "accumulation");
        assert_eq!(field(TrainConfig { learning_rate: f64::NAN, ..Default::default() }), "learning_rate");
        assert_eq!(field(TrainConfig { beta_2: 1.0, ..Default::default() }), "beta_2");
        assert_eq!(field(TrainConfig { ema_decay: Some(1.5), ..Default::default() }), "ema_decay");
        assert_eq!(field(TrainConfig { sample_every: Some(0), ..Default::default() }), "sample_every");
        let schedule = Schedule::CosineRestarts { period: 1, growth: 1, final_fraction: 0.0 };
        assert_eq!(field(TrainConfig { schedule, ..Default::default() }), "schedule.cosine_restarts.period");
        let watch = Some(Watch { metric: "recall".into(), goal: Goal::Highest, patience: None });
        assert_eq!(field(TrainConfig { watch, ..Default::default() }), "watch.figure");
        let loss_scaling = Some(LossScaling { growth: 0.5, ..Default::default() });
        assert_eq!(field(TrainConfig { loss_scaling, ..Default::default() }), "loss_scaling.growth");
        assert!(TrainConfig::default().validate().is_ok());
    }

    #[test]
    fn json_fills_in_defaults_and_refuses_unknown_fields() {
        let config: TrainConfig = serde_json::from_str(r#"{"steps": 7, "schedule": "constant"}"#).unwrap();
        assert_eq!(config, TrainConfig { steps: 7, schedule: Schedule::Constant, ..Default::default() });
        let error = serde_json::from_str::<TrainConfig>(r#"{"step": 7}"#).unwrap_err();
        assert!(error.to_string().contains("`step`"), "{error}");
    }
}
