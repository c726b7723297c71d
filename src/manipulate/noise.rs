//! Noise that begins with given arrays.

use burn::prelude::*;
use dalle2_core::diffusion::NoiseSource;
use dalle2_core::{Error, Result};

/// Gives a known x_T first, then what another source gives.
pub(super) struct StartFrom {
    first: Option<(Vec<usize>, Vec<f32>)>,
    rest: Box<dyn NoiseSource>,
}

impl StartFrom {
    pub fn new(x_t: Tensor<4>, rest: Box<dyn NoiseSource>) -> Result<Self> {
        let shape = x_t.dims().to_vec();
        let values = x_t.try_into_vec_as().map_err(|e| Error::Device(format!("reading noise: {e}")))?;
        Ok(Self { first: Some((shape, values)), rest })
    }
}

impl NoiseSource for StartFrom {
    fn normal(&mut self, shape: &[usize]) -> Result<Vec<f32>> {
        match self.first.take() {
            None => self.rest.normal(shape),
            Some((found, values)) if found == shape => Ok(values),
            Some((found, _)) => {
                Err(Error::Input(format!("a generation of shape {shape:?} cannot start from noise of shape {found:?}")))
            }
        }
    }
}

/// A source that cannot give anything, and says why.
pub(super) struct Failed(pub String);

impl NoiseSource for Failed {
    fn normal(&mut self, _: &[usize]) -> Result<Vec<f32>> {
        Err(Error::Device(self.0.clone()))
    }
}
