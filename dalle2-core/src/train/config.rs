//! What a training run is told: lengths, optimizer, schedule and how often things are written.

use serde::{Deserialize, Serialize};

use crate::ConfigError;

/// How the learning rate goes on after the warm-up.
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
    /// Seed of everything random in the run.
    pub seed: u64,
    /// Steps between two lines on a display without a progress bar.
    pub log_every: u64,
    /// Steps between two checkpoints; the last step always has one.
    pub checkpoint_every: u64,
    /// Checkpoints that are kept; older ones are deleted.
    pub keep_checkpoints: usize,
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
            seed: 0,
            log_every: 50,
            checkpoint_every: 500,
            keep_checkpoints: 2,
            sample_every: None,
            validate_every: None,
            max_skipped_in_a_row: 25,
            divergence_factor: Some(10.0),
        }
    }
}

/// The fields that may change between two sessions of one run: how long it is and what it writes, not what it computes.
pub(super) const MAY_CHANGE: [&str; 7] = [
    "train.steps",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
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
        at_least_one("log_every", self.log_every)?;
        at_least_one("checkpoint_every", self.checkpoint_every)?;
        at_least_one("keep_checkpoints", self.keep_checkpoints as u64)?;
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
        if let Schedule::Cosine { final_fraction } = self.schedule {
            let fits = (0.0..=1.0).contains(&final_fraction);
            check("schedule.cosine.final_fraction", final_fraction, fits, "must be in [0, 1]")?;
        }
        Ok(())
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
                let falling = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
                self.learning_rate * (final_fraction + (1.0 - final_fraction) * falling)
            }
        }
    }
}

fn at_least_one(field: &str, value: u64) -> Result<(), ConfigError> {
    if value == 0 { Err(ConfigError::new(field, value, "must be at least 1")) } else { Ok(()) }
}

fn check(field: &str, value: f64, in_range: bool, expected: &str) -> Result<(), ConfigError> {
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
    fn a_bad_value_is_named() {
        let field = |config: TrainConfig| config.validate().unwrap_err().field;
        assert_eq!(field(TrainConfig { accumulation: 0, ..Default::default() }), "accumulation");
        assert_eq!(field(TrainConfig { learning_rate: f64::NAN, ..Default::default() }), "learning_rate");
        assert_eq!(field(TrainConfig { beta_2: 1.0, ..Default::default() }), "beta_2");
        assert_eq!(field(TrainConfig { ema_decay: Some(1.5), ..Default::default() }), "ema_decay");
        assert_eq!(field(TrainConfig { sample_every: Some(0), ..Default::default() }), "sample_every");
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
