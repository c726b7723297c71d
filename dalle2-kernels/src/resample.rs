//! Changes of resolution by two.

use burn::prelude::*;
use burn::tensor::{module::avg_pool2d, ops::AvgPoolOptions};

/// What a block does to the resolution of its images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Resample {
    /// Keeps it.
    #[default]
    Keep,
    /// Halves it by averaging 2 × 2 blocks.
    Down,
    /// Doubles it by repeating pixels.
    Up,
}

/// Changes the resolution of images. A last row or column without a neighbour is left out when it is halved.
///
/// # Shapes
/// `x: [B, C, H, W]` -> `[B, C, H', W']` with `H' = H`, `H / 2` or `2 H`
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
