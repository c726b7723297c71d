//! Weights for tests.
#![allow(clippy::unwrap_used)]

use burn::module::{ModuleMapper, Param};
use burn::tensor::{Tensor, TensorData};
use dalle2_core::diffusion::{NoiseSource, SeededNoise};

/// Replaces every weight by noise, the same for the same seed: zero convolutions would hide what is behind them, and
/// weights that are others in each run would now and then make a test fail.
pub struct Randomise {
    noise: SeededNoise,
    std: f32,
}

impl Randomise {
    pub fn new(seed: u64, std: f32) -> Self {
        Self { noise: SeededNoise::new(&[seed], 0), std }
    }
}

impl ModuleMapper for Randomise {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|value| {
            let values = self.noise.normal(&[1, value.shape().num_elements()]).unwrap();
            Tensor::from_data(TensorData::new(values, value.shape()), &value.device()) * self.std
        })
    }
}
