//! The memory that a training run needs, before it is allocated.

use serde::Serialize;

use super::TrainConfig;

/// Bytes of an f32.
const FLOAT: u64 = 4;

/// An estimate of a run's memory in bytes, in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MemoryEstimate {
    /// The weights, their gradients (twice with accumulation), AdamW's two moments and the average of the weights.
    pub states: u64,
    /// Activations of one batch, saved for the backward pass.
    pub activations: u64,
}

impl MemoryEstimate {
    /// Estimates the memory of a model with `parameters` parameters and `activations` activations per item, for `items`
    /// items in one forward pass.
    pub fn new(parameters: u64, activations: u64, items: u64, config: &TrainConfig) -> Self {
        let gradients = if config.accumulation > 1 { 2 } else { 1 };
        let average = u64::from(config.ema_decay.is_some());
        Self { states: FLOAT * parameters * (1 + gradients + 2 + average), activations: FLOAT * activations * items }
    }

    /// Returns the sum.
    pub fn total(&self) -> u64 {
        self.states + self.activations
    }
}
