//! The contract between a model and a trainer.

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::prelude::*;

/// The loss of one batch and the metrics to log beside it.
#[derive(Debug, Clone)]
pub struct StepOutput {
    /// The mean loss over the batch, `[1]`, in f32, with its autodiff graph.
    pub loss: Tensor<1>,
    /// Further values to log, `[1]` each and without autodiff, such as the terms of the loss or an accuracy.
    pub metrics: Vec<(&'static str, Tensor<1>)>,
}

impl StepOutput {
    /// Creates the output of a step from the loss to differentiate.
    pub fn new(loss: Tensor<1>) -> Self {
        Self { loss, metrics: Vec::new() }
    }

    /// Adds a value to log.
    pub fn with(mut self, name: &'static str, value: Tensor<1>) -> Self {
        self.metrics.push((name, value.without_autodiff()));
        self
    }

    /// Removes the autodiff graph of the loss, which frees its activations.
    pub fn detach(self) -> Self {
        Self { loss: self.loss.without_autodiff(), ..self }
    }
}

/// The gradients of one batch, and the values to log.
#[derive(Debug)]
pub struct StepGradients {
    /// Gradients of the loss times the loss scale.
    pub grads: GradientsParams,
    /// The unscaled loss and the metrics, without autodiff.
    pub output: StepOutput,
}

/// A module that a trainer can train: it computes the loss of a batch.
///
/// ```
/// # use burn::nn::Linear;
/// # use burn::prelude::*;
/// # use dalle2_core::train::{StepOutput, TrainTask};
/// #[derive(Module, Debug)]
/// struct Double {
///     linear: Linear,
/// }
///
/// impl TrainTask for Double {
///     type Batch = Tensor<2>;
///
///     fn loss(&self, x: Tensor<2>) -> StepOutput {
///         StepOutput::new((self.linear.forward(x.clone()) - x * 2.0).square().mean())
///     }
/// }
/// ```
pub trait TrainTask: Module {
    /// One batch, which holds every random value that the loss needs.
    type Batch: Send + 'static;

    /// Computes the loss of a batch. The model must be on an autodiff device for the loss to be differentiable.
    fn loss(&self, batch: Self::Batch) -> StepOutput;

    /// Computes the gradients of `loss_scale` times the loss of a batch.
    ///
    /// The default differentiates [`TrainTask::loss`]. A task that computes gradients in parts, such as gradient
    /// caching, replaces it.
    fn gradients(&self, batch: Self::Batch, loss_scale: f64) -> StepGradients {
        let output = self.loss(batch);
        let grads = (output.loss.clone() * loss_scale).backward();
        StepGradients { grads: GradientsParams::from_grads(grads, self), output: output.detach() }
    }

    /// Adjusts the parameters after each optimizer step, for example to clamp one of them.
    fn after_step(self) -> Self {
        self
    }
}
