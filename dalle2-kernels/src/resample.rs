//! Resampling by a factor of two.

use burn::prelude::*;
use burn::tensor::{module::avg_pool2d, ops::AvgPoolOptions};

/// Resampling of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Resample {
    /// Keeps the resolution.
    #[default]
    Keep,
    /// Halves height and width by averaging 2 × 2 blocks.
    Down,
    /// Doubles height and width by repeating pixels.
    Up,
}

/// Resamples images. [`Resample::Down`] drops the last row or column of an odd size.
///
/// # Shapes
/// - `x`: `[B, C, H, W]`
/// - result: `[B, C, H', W']`, where `H'` is `H`, `H / 2` or `2 H`
pub fn resample(x: Tensor<4>, how: Resample) -> Tensor<4> {
    match how {
        Resample::Keep => x,
        Resample::Down => avg_pool2d(x, AvgPoolOptions::new([2, 2])),
        Resample::Up => {
            let [b, c, h, w] = x.dims();
            // [B, C, H, W] -> [B, C, H, 2, W, 2] -> [B, C, 2H, 2W]
            x.reshape([b, c, h, 1, w, 1]).expand([b, c, h, 2, w, 2]).reshape([b, c, 2 * h, 2 * w])
        }
    }
}
