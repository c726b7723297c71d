//! What a run calls besides the training step.

use std::path::Path;

use dalle2_core::Result;

/// Called by the [`Trainer`](super::Trainer) now and then with the averaged model, or with the model itself when there is no
/// average; always without autodiff. Every method may be left out, and `()` leaves out all.
pub trait Hooks<M> {
    /// Draws what shows the state of the model and writes it as PNG to `path`.
    ///
    /// # Errors
    /// End the run.
    fn sample(&mut self, model: &M, step: u64, path: &Path) -> Result<()> {
        let _ = (model, step, path);
        Ok(())
    }

    /// Computes figures to log, such as a loss on held-out data.
    ///
    /// # Errors
    /// End the run.
    fn validate(&mut self, model: &M, step: u64) -> Result<Vec<(String, f64)>> {
        let _ = (model, step);
        Ok(Vec::new())
    }

    /// Writes what a pipeline loads into the empty directory `dir`, which then becomes `export/` of the run. Called after
    /// every checkpoint.
    ///
    /// # Errors
    /// End the run; the export before stays.
    fn export(&mut self, model: &M, dir: &Path) -> Result<()> {
        let _ = (model, dir);
        Ok(())
    }
}

impl<M> Hooks<M> for () {}
