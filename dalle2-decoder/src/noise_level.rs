//! Noise conditioning augmentation of the upsamplers.

use burn::prelude::*;
use dalle2_core::ConfigError;
use serde::{Deserialize, Serialize};

/// Noise on the small image, whose level the network is told (Ho et al. 2021, Cascaded Diffusion Models, arXiv
/// 2106.15282, section 4): an upsampler that has learned from noisy small images forgives what the stage before it got wrong.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoiseLevel {
    /// Largest deviation of the noise in training, in units of the pixels' range [−1, 1]; each image draws its own, from 0.
    pub train_max: f64,
    /// Deviation when sampling, from 0 to `train_max`.
    pub sampling: f64,
}

impl NoiseLevel {
    /// Checks the numbers.
    ///
    /// # Errors
    /// When not 0 ≤ `sampling` ≤ `train_max`, or `train_max` is not finite and above 0.
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let fits =
            self.train_max.is_finite() && self.train_max > 0.0 && (0.0..=self.train_max).contains(&self.sampling);
        match fits {
            true => Ok(()),
            false => {
                let found = format!("sampling {} of train_max {}", self.sampling, self.train_max);
                Err(ConfigError::new("noise_level", found, "needs 0 ≤ sampling ≤ train_max, finite and above 0"))
            }
        }
    }

    /// The noisy small image with its level in a channel behind it.
    ///
    /// # Shapes
    /// - low, noise: `[B, 3, H, W]`
    /// - sigmas: one deviation for each image
    /// - result: `[B, 4, H, W]`
    pub(crate) fn channels(&self, low: Tensor<4>, noise: Tensor<4>, sigmas: &[f64]) -> Tensor<4> {
        let ([b, _, h, w], device) = (low.dims(), low.device());
        let column = |scale: f64| {
            let values: Vec<f32> = sigmas.iter().map(|sigma| (sigma * scale) as f32).collect();
            Tensor::<4>::from_data(TensorData::new(values, [b, 1, 1, 1]), &device)
        };
        let level = column(1.0 / self.train_max).expand([b, 1, h, w]);
        Tensor::cat(vec![low + noise * column(1.0), level], 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_stands_behind_the_noisy_image() {
        let device = Device::flex();
        let level = NoiseLevel { train_max: 0.4, sampling: 0.1 };
        let low = Tensor::<4>::full([2, 3, 1, 1], 0.5, &device);
        let found = level.channels(low.clone(), low.ones_like() * 2.0, &[0.0, 0.2]);
        let expected = [0.5, 0.5, 0.5, 0.0, 0.9, 0.9, 0.9, 0.5];
        for (found, expected) in found.into_data().try_to_vec::<f32>().unwrap().into_iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
        }
    }

    #[test]
    fn levels_out_of_range_are_refused() {
        assert!(NoiseLevel { train_max: 0.3, sampling: 0.3 }.validate().is_ok());
        for (train_max, sampling) in [(0.3, 0.31), (0.0, 0.0), (f64::NAN, 0.0), (0.3, -0.1)] {
            assert_eq!(NoiseLevel { train_max, sampling }.validate().unwrap_err().field, "noise_level");
        }
    }
}
