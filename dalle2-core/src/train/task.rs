//! What the trainer asks of a model beyond Burn's [`TrainStep`].

use burn::module::Module;
use burn::train::{TrainOutput, TrainStep};

/// A model that the [`Trainer`](super::Trainer) trains. Every method may be left out.
///
/// ```
/// # use burn::nn::Linear;
/// # use burn::prelude::*;
/// # use burn::train::{TrainOutput, TrainStep};
/// # use dalle2_core::train::{StepOutput, TrainTask};
/// #[derive(Module, Debug)]
/// struct Double {
///     linear: Linear,
/// }
///
/// impl TrainStep for Double {
///     type Input = Tensor<2>;
///     type Output = StepOutput;
///
///     fn step(&self, x: Tensor<2>) -> TrainOutput<StepOutput> {
///         self.step_with(x, 1.0)
///     }
/// }
///
/// impl TrainTask for Double {
///     fn scaled_step(&self, x: Tensor<2>, scale: f64) -> Option<TrainOutput<StepOutput>> {
///         Some(self.step_with(x, scale))
///     }
/// }
///
/// impl Double {
///     fn step_with(&self, x: Tensor<2>, scale: f64) -> TrainOutput<StepOutput> {
///         let loss = (self.linear.forward(x.clone()) - x * 2.0).square().mean();
///         TrainOutput::new(self, (loss.clone() * scale).backward(), StepOutput::new(loss))
///     }
/// }
/// ```
pub trait TrainTask: TrainStep + Module {
    /// [`TrainStep::step`] with the gradients of `scale` times the loss; the loss that is reported is not scaled. The factor
    /// belongs where the loss is f32. `None`, the default, means that the model cannot be trained with a scaled loss,
    /// and so not in f16.
    fn scaled_step(&self, batch: Self::Input, scale: f64) -> Option<TrainOutput<Self::Output>> {
        let _ = (batch, scale);
        None
    }
}
