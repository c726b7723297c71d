//! Callbacks of a run besides the training step.

use std::path::Path;

use dalle2_core::Result;
use dalle2_core::store::PipelineDir;

/// Callbacks of the [`Trainer`](super::Trainer).
///
/// They receive the averaged model, or the model itself if the run has no average, always without autodiff. Every method
/// has an empty default, and `()` implements the trait. When a callback fails, the run writes a checkpoint and ends with
/// its error.
pub trait Hooks<M> {
    /// Samples from the model and writes a PNG to `path`.
    ///
    /// # Errors
    /// End the run after a checkpoint.
    fn sample(&mut self, model: &M, step: u64, path: &Path) -> Result<()> {
        let _ = (model, step, path);
        Ok(())
    }

    /// Computes metrics to log, such as a loss on held-out data.
    ///
    /// # Errors
    /// End the run after a checkpoint.
    fn validate(&mut self, model: &M, step: u64) -> Result<Vec<(String, f64)>> {
        let _ = (model, step);
        Ok(Vec::new())
    }

    /// Installs the model's parts into the pipeline directory of the run, after each checkpoint.
    ///
    /// # Errors
    /// End the run; the checkpoint is already written and the installed parts are unchanged.
    fn export(&mut self, model: &M, pipeline: &mut PipelineDir) -> Result<()> {
        let _ = (model, pipeline);
        Ok(())
    }
}

impl<M> Hooks<M> for () {}
