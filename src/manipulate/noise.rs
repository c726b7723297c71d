//! A noise source with a given first array.

use burn::prelude::*;
use dalle2_core::diffusion::NoiseSource;
use dalle2_core::{Error, Result};

/// Returns a known x_T first, then the arrays of another source.
pub(crate) struct StartFrom {
    first: Option<(Vec<usize>, Vec<f32>)>,
    rest: Box<dyn NoiseSource>,
}

impl StartFrom {
    pub(crate) fn new(x_t: Tensor<4>, rest: Box<dyn NoiseSource>) -> Result<Self> {
        let shape = x_t.dims().to_vec();
        let values = x_t.try_into_vec_as().map_err(|e| Error::Device(format!("reading noise: {e}")))?;
        Ok(Self { first: Some((shape, values)), rest })
    }
}

impl NoiseSource for StartFrom {
    fn normal(&mut self, shape: &[usize]) -> Result<Vec<f32>> {
        match self.first.take() {
            None => self.rest.normal(shape),
            Some((own, values)) if own == shape => Ok(values),
            Some((own, _)) => {
                Err(Error::Input(format!("a generation of shape {shape:?} cannot start from noise of shape {own:?}")))
            }
        }
    }
}
