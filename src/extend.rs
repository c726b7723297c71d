//! Upsamplers that come after a pipeline was loaded.

use std::sync::Arc;

use dalle2_core::{Error, Result, Upsampler};

use crate::Pipeline;

impl Pipeline {
    /// The same pipeline with one more upsampler behind those it has.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when the upsampler reads images of another size than the pipeline draws.
    pub fn with_upsampler(mut self, upsampler: impl Upsampler + 'static) -> Result<Self> {
        let (drawn, read) = (self.image_size(), upsampler.input_size());
        if drawn != read {
            return Err(Error::Mismatch(format!(
                "the pipeline draws images of {drawn} px, the further upsampler reads images of {read} px"
            )));
        }
        self.upsamplers.push(Arc::new(upsampler));
        Ok(self)
    }
}
