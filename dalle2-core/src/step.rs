//! Progress of a sampling loop.

use burn::prelude::*;

use crate::Result;

/// One finished sampling step.
#[derive(Debug, Clone, Copy)]
pub struct StepEvent<'a> {
    /// Number of finished steps, from 1 to `total`.
    pub step: usize,
    /// Number of steps of the stage.
    pub total: usize,
    /// The current estimate of the clean images `[B, 3, H, W]` in [−1, 1]; `None` in stages that work on embeddings.
    pub x_start: Option<&'a Tensor<4>>,
}

/// A callback after each sampling step. An error stops the stage and is returned from it; a hook cancels with
/// [`Error::Cancelled`](crate::Error::Cancelled).
///
/// ```
/// use dalle2_core::{Error, StepEvent, StepHook};
///
/// let mut stop_early = |event: StepEvent<'_>| if event.step < 5 { Ok(()) } else { Err(Error::Cancelled) };
/// let hook: StepHook<'_> = &mut stop_early;
/// assert!(hook(StepEvent { step: 1, total: 10, x_start: None }).is_ok());
/// ```
pub type StepHook<'a> = &'a mut dyn FnMut(StepEvent<'_>) -> Result<()>;
