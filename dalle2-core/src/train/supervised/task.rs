//! A model between Burn's loop and its own training step.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::module::{Module, ModuleDisplay};
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::train::{InferenceStep, TrainOutput, TrainStep};

use super::super::{LossOutput, TrainTask, clip_global_norm};
use super::recorder::Recorder;

/// A model to be trained, with what Burn's loop lacks: it clips the norm of all gradients together, leaves out steps with a
/// gradient that is not finite, and records every step.
#[derive(Module, Debug)]
pub(super) struct Supervised<M: Module + ModuleDisplay> {
    /// The model.
    pub task: M,
    #[module(skip)]
    shared: Shared,
}

/// What all copies of a model share.
#[derive(Clone)]
pub(super) struct Shared {
    recorder: Arc<Mutex<Recorder>>,
    /// What gradients are multiplied by.
    share: f64,
    max_norm: Option<f64>,
}

impl Shared {
    pub fn new(recorder: Recorder, share: f64, max_norm: Option<f64>) -> Self {
        Self { recorder: Arc::new(Mutex::new(recorder)), share, max_norm }
    }

    pub fn recorder(&self) -> MutexGuard<'_, Recorder> {
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("share", &self.share).field("max_norm", &self.max_norm).finish_non_exhaustive()
    }
}

impl<M: Module + ModuleDisplay> Supervised<M> {
    pub fn new(task: M, shared: Shared) -> Self {
        Self { task, shared }
    }
}

impl<M> TrainStep for Supervised<M>
where
    M: TrainTask + ModuleDisplay,
    M::Output: LossOutput,
{
    type Input = M::Input;
    type Output = M::Output;

    fn step(&self, batch: M::Input) -> TrainOutput<M::Output> {
        let output = TrainStep::step(&self.task, batch);
        self.shared.recorder().batch(&output.item);
        output
    }

    fn optimize(self, optim: &mut ModuleOptimizer, rate: ModuleLearningRate, mut grads: GradientsParams) -> Self {
        let Self { task, shared } = self;
        let norm = match clip_global_norm(&mut grads, &task, shared.share, shared.max_norm) {
            Ok(norm) => norm,
            Err(error) => {
                shared.recorder().fail(error);
                return Self { task, shared };
            }
        };
        let learning_rate = rate.base();
        // The norm alone decides: with data-parallel training it is the same on every device, and a loss is not.
        let task = if norm.is_finite() { task.optimize(optim, rate, grads) } else { task };
        shared.recorder().step(&task, learning_rate, norm);
        Self { task, shared }
    }
}

impl<M: InferenceStep + Module + ModuleDisplay> InferenceStep for Supervised<M> {
    type Input = M::Input;
    type Output = M::Output;

    fn step(&self, batch: M::Input) -> M::Output {
        self.task.step(batch)
    }
}
