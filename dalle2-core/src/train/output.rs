//! What a training step reports.

use burn::prelude::*;
use burn::tensor::ExecutionError;
use burn::train::metric::{Adaptor, ItemLazy, LossInput};

/// Output of a [`TrainStep`](burn::train::TrainStep) that the [`Trainer`](super::Trainer) can log.
pub trait LossOutput: ItemLazy {
    /// The loss that was differentiated: one value, the mean over the batch.
    fn loss(&self) -> Tensor<1>;

    /// Further values to log, one number each, such as the parts of the loss or an accuracy.
    fn metrics(&self) -> Vec<(&'static str, Tensor<1>)> {
        Vec::new()
    }
}

/// The loss of a step and named values; the output for models that need nothing else.
///
/// It also feeds Burn's own `LossMetric`, so the same model trains under `burn::train::SupervisedTraining`.
#[derive(Debug, Clone)]
pub struct StepOutput {
    loss: Tensor<1>,
    metrics: Vec<(&'static str, Tensor<1>)>,
}

impl StepOutput {
    /// With the loss that is differentiated.
    pub fn new(loss: Tensor<1>) -> Self {
        Self { loss: loss.without_autodiff(), metrics: Vec::new() }
    }

    /// Adds a value to log.
    pub fn with(mut self, name: &'static str, value: Tensor<1>) -> Self {
        self.metrics.push((name, value.without_autodiff()));
        self
    }
}

impl LossOutput for StepOutput {
    fn loss(&self) -> Tensor<1> {
        self.loss.clone()
    }

    fn metrics(&self) -> Vec<(&'static str, Tensor<1>)> {
        self.metrics.clone()
    }
}

impl ItemLazy for StepOutput {
    fn sync(self) -> Result<Self, ExecutionError> {
        self.loss.device().flush()?;
        Ok(self)
    }
}

impl Adaptor<LossInput> for StepOutput {
    fn adapt(&self) -> LossInput {
        LossInput::new(self.loss.clone())
    }
}
