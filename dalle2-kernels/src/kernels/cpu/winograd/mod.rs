//! 3 × 3 convolution by Winograd's minimal filtering F(4 × 4, 3 × 3) and F(2 × 2, 3 × 3) (Lavin & Gray 2015, Fast
//! Algorithms for Convolutional Neural Networks, section 4): 4 and 2.25 times fewer multiplications than the direct sum.
//!
//! An output tile of 4 × 4 pixels depends on a patch of 6 × 6. With the points 0, ±1, ±2 and ∞, the patch becomes
//! `V = Bᵀ d B` and the filter `U = G g Gᵀ`, both 6 × 6; channels are summed by one matrix product for each of the 36
//! points, and `Aᵀ M A` is the tile. The small size does the same with tiles of 2 × 2, patches of 4 × 4 and the points
//! 0, ±1 and ∞. The gradient of the input is a convolution with the mirrored weights; that of the weights is made of the
//! transposed maps around products with the same factors.

mod forward;
mod maps;
mod panel;
mod weights;

use rayon::prelude::*;

use super::conv::ConvShape;
use super::planes::Planes;

pub use weights::gradient as weight_gradient;

/// Tiles of 4 × 4 from which these are best, and tiles of 2 × 2 from which those are better than columns.
const LARGE: usize = 17;
const SMALL: usize = 16;
/// Tiles for the gradient of the weights, and channels, below which a transform costs more than it saves.
const LEAST_TILES: usize = 16;
const LEAST_CHANNELS: usize = 16;

/// Whether this method applies to a convolution, and pays.
pub fn applies(shape: &ConvShape) -> bool {
    side(shape).is_some()
}

/// Whether it applies to the gradient of the weights, and pays.
pub fn applies_to_weights(shape: &ConvShape) -> bool {
    fits(shape) && count(shape, 4) >= LEAST_TILES
}

/// The side of the tiles that are best for a convolution, if any are.
///
/// As `sizes_by_shape` below measures it.
fn side(shape: &ConvShape) -> Option<usize> {
    match fits(shape) {
        true if count(shape, 4) >= LARGE => Some(4),
        true if count(shape, 2) >= SMALL => Some(2),
        _ => None,
    }
}

fn fits(shape: &ConvShape) -> bool {
    shape.kernel == [3, 3]
        && shape.stride == [1, 1]
        && shape.padding.iter().all(|padding| *padding <= 2)
        && shape.channels.iter().all(|channels| *channels >= LEAST_CHANNELS)
}

/// Tiles with this side over a grid, down and across.
fn tiles(grid: [usize; 2], side: usize) -> [usize; 2] {
    grid.map(|length| length.div_ceil(side))
}

/// Tiles of the whole batch.
fn count(shape: &ConvShape, side: usize) -> usize {
    shape.batch * tiles(shape.grid, side).iter().product::<usize>()
}

/// The convolution of `x` `[B, C_in, H, W]` with `weight` `[C_out, C_in, 3, 3]`, plus `bias` `[C_out]` and `residual`
/// `[B, C_out, H', W']` if there are such.
pub fn forward(
    shape: &ConvShape,
    x: Planes<'_>,
    weight: &[f32],
    bias: Option<&[f32]>,
    residual: Option<Planes<'_>>,
) -> Vec<f32> {
    match side(shape) {
        Some(2) => forward::forward::<maps::Small, 2, 4>(shape, x, weight, bias, residual),
        _ => forward::forward::<maps::Large, 4, 6>(shape, x, weight, bias, residual),
    }
}

/// The gradient of the input of [`forward`], given that of its result.
pub fn input_gradient(shape: &ConvShape, weight: &[f32], grad: &[f32]) -> Vec<f32> {
    let [from, to] = shape.channels;
    let mirrored = ConvShape {
        channels: [to, from],
        image: shape.grid,
        grid: shape.image,
        padding: shape.padding.map(|padding| 2 - padding),
        ..*shape
    };
    forward(&mirrored, Planes::kept(grad, shape.grid), &mirror(weight, shape.channels), None, None)
}

/// Weights `[C_out, C_in, 3, 3]` as `[C_in, C_out, 3, 3]`, turned by half a turn.
fn mirror(weight: &[f32], [from, to]: [usize; 2]) -> Vec<f32> {
    let (taps, _) = weight.as_chunks::<9>();
    let mut mirrored = vec![0.0; weight.len()];
    mirrored.par_chunks_mut(to * 9).enumerate().for_each(|(input, mirrored)| {
        for (output, mirrored) in mirrored.as_chunks_mut::<9>().0.iter_mut().enumerate() {
            *mirrored = taps[output * from + input];
            mirrored.reverse();
        }
    });
    mirrored
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use burn::backend::flex::FlexTensor;
    use burn::tensor::TensorData;

    use super::super::super::super::Resample;
    use super::super::conv;
    use super::super::planes::Planes;
    use super::{ConvShape, forward, maps};

    fn shape(batch: usize, channels: usize, side: usize) -> ConvShape {
        ConvShape {
            batch,
            channels: [channels; 2],
            image: [side; 2],
            grid: [side; 2],
            kernel: [3, 3],
            stride: [1, 1],
            padding: [1, 1],
            resample: Resample::Keep,
            residual: Resample::Keep,
        }
    }

    /// What `side` is chosen by: `cargo test --release --workspace --lib sizes_by_shape -- --ignored --nocapture`
    #[test]
    #[ignore = "measures, and asserts nothing"]
    fn sizes_by_shape() {
        println!("batch channels side   columns  F(2 × 2)  F(4 × 4), medians of 9 in ms");
        for batch in [1, 2] {
            for (channels, side) in [
                (1280, 4),
                (640, 4),
                (1280, 8),
                (640, 8),
                (320, 8),
                (64, 8),
                (1280, 12),
                (640, 12),
                (128, 12),
                (960, 16),
                (640, 16),
                (320, 16),
                (128, 16),
                (32, 16),
                (640, 20),
                (640, 24),
                (128, 24),
                (640, 32),
                (320, 32),
                (64, 32),
                (16, 32),
                (320, 64),
                (16, 64),
            ] {
                let shape = shape(batch, channels, side);
                let x = vec![0.5; batch * channels * side * side];
                let weight = vec![0.25; channels * channels * 9];
                let tensor = FlexTensor::from_data(TensorData::new(weight.clone(), [channels, channels, 3, 3]));
                let planes = Planes::kept(&x, shape.image);
                let columns = || conv::by_columns(&shape, &x, &tensor, &vec![0.0; channels]);
                let small = || forward::forward::<maps::Small, 2, 4>(&shape, planes, &weight, None, None);
                let large = || forward::forward::<maps::Large, 4, 6>(&shape, planes, &weight, None, None);
                let ways: [&dyn Fn() -> Vec<f32>; 3] = [&columns, &small, &large];
                let mut times = [(); 3].map(|()| Vec::new());
                for _ in 0..9 {
                    for (times, way) in times.iter_mut().zip(ways) {
                        let start = Instant::now();
                        drop(way());
                        times.push(start.elapsed().as_secs_f64() * 1e3);
                    }
                }
                let [columns, small, large] = times.map(|mut times| {
                    times.sort_by(f64::total_cmp);
                    times[times.len() / 2]
                });
                println!("{batch:5} {channels:8} {side:4} {columns:9.3} {small:9.3} {large:9.3}");
            }
        }
    }
}
