//! Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598).

use burn::prelude::*;
use serde::{Deserialize, Serialize};

use crate::ConfigError;

/// The timesteps at which guidance acts; at others the conditional prediction is taken as it is, which costs half as
/// much. Guidance at the noisiest timesteps takes diversity and at the cleanest ones changes little (Kynkäänniemi et al.
/// 2024, arXiv 2404.07724).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuidanceInterval {
    /// Share of the T timesteps below which there is no guidance, from 0.
    pub low: f64,
    /// Share of the T timesteps above which there is no guidance, to 1.
    pub high: f64,
}

impl GuidanceInterval {
    /// All timesteps.
    pub const ALL: Self = Self { low: 0.0, high: 1.0 };

    /// Whether guidance acts at timestep `t` of `train_steps`.
    pub fn contains(self, t: usize, train_steps: usize) -> bool {
        let share = t as f64 / train_steps as f64;
        (self.low..=self.high).contains(&share)
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// When not 0 ≤ `low` ≤ `high` ≤ 1.
    pub fn validate(&self) -> Result<(), ConfigError> {
        match 0.0 <= self.low && self.low <= self.high && self.high <= 1.0 {
            true => Ok(()),
            false => {
                let found = format!("{} to {}", self.low, self.high);
                Err(ConfigError::new("guidance_interval", found, "needs 0 ≤ low ≤ high ≤ 1"))
            }
        }
    }
}

/// Moves the conditional output away from the unconditional one: uncond + scale · (cond − uncond).
///
/// Scale 1 gives the conditional output, 0 the unconditional one. Only the prediction is guided; the variance that a
/// network learned comes from the conditional half.
///
/// # Shapes
/// - uncond, cond and the output: `[B, …]`
pub fn guide<const D: usize>(uncond: Tensor<D>, cond: Tensor<D>, scale: f64) -> Tensor<D> {
    uncond.clone() + (cond - uncond) * scale
}

/// [`guide`] for a batch that holds both halves, unconditional first: one forward pass computes them together.
///
/// # Shapes
/// - halves: `[2 * B, …]`
/// - output: `[B, …]`
///
/// # Panics
/// When the batch is odd.
pub fn guide_halves<const D: usize>(halves: Tensor<D>, scale: f64) -> Tensor<D> {
    let rows = halves.dims()[0];
    assert!(rows.is_multiple_of(2), "a guidance batch has two halves of one size, found {rows} rows");
    guide(halves.clone().narrow(0, 0, rows / 2), halves.narrow(0, rows / 2, rows / 2), scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scale_moves_along_the_difference() {
        let device = Device::flex();
        let halves = Tensor::<2>::from_floats([[1.0, 2.0], [3.0, -2.0]], &device);
        for (scale, expected) in [(0.0, [1.0, 2.0]), (1.0, [3.0, -2.0]), (2.5, [6.0, -8.0])] {
            assert_eq!(guide_halves(halves.clone(), scale).into_data().try_to_vec::<f32>().unwrap(), expected);
        }
    }

    #[test]
    fn an_interval_is_a_share_of_the_timesteps() {
        let interval = GuidanceInterval { low: 0.25, high: 0.75 };
        let inside: Vec<usize> = (0..8).filter(|t| interval.contains(*t, 8)).collect();
        assert_eq!(inside, [2, 3, 4, 5, 6]);
        assert!((0..1000).all(|t| GuidanceInterval::ALL.contains(t, 1000)));
        assert!(interval.validate().is_ok());
        for (low, high) in [(0.5, 0.4), (-0.1, 1.0), (0.0, 1.1), (f64::NAN, 1.0)] {
            assert_eq!(GuidanceInterval { low, high }.validate().unwrap_err().field, "guidance_interval");
        }
    }

    #[test]
    #[should_panic(expected = "found 3 rows")]
    fn an_odd_batch_is_a_bug() {
        guide_halves(Tensor::<2>::zeros([3, 1], &Device::flex()), 1.0);
    }
}
