//! The choice of the tile size, the convolution and its input gradient.

use rayon::prelude::*;

use super::super::conv::ConvShape;
use super::super::planes::Planes;

/// Minimum number of tiles of F(4 × 4, 3 × 3), and of F(2 × 2, 3 × 3) instead of im2col; both measured by the test
/// `sizes_by_shape` below.
const MIN_F4_TILES: usize = 17;
const MIN_F2_TILES: usize = 16;
/// Minimum numbers of tiles of the weight gradient and of channels; tuned with
/// `cargo bench -p dalle2-kernels --bench ops`.
const MIN_GRAD_TILES: usize = 16;
const MIN_CHANNELS: usize = 16;

/// Whether Winograd's method applies to a convolution and is fastest.
pub(crate) fn applies(shape: &ConvShape) -> bool {
    side(shape).is_some()
}

/// Whether it applies to the weight gradient and is fastest.
pub(crate) fn applies_to_grad_weight(shape: &ConvShape) -> bool {
    is_supported(shape) && count(shape, 4) >= MIN_GRAD_TILES
}

/// The side of the output tiles, or `None` if im2col is faster.
fn side(shape: &ConvShape) -> Option<usize> {
    if !is_supported(shape) {
        None
    } else if count(shape, 4) >= MIN_F4_TILES {
        Some(4)
    } else if count(shape, 2) >= MIN_F2_TILES {
        Some(2)
    } else {
        None
    }
}

fn is_supported(shape: &ConvShape) -> bool {
    shape.kernel == [3, 3]
        && shape.stride == [1, 1]
        && shape.padding.iter().all(|padding| *padding <= 2)
        && shape.channels.iter().all(|channels| *channels >= MIN_CHANNELS)
}

/// Rows and columns of tiles over a grid.
pub(super) fn tiles(grid: [usize; 2], side: usize) -> [usize; 2] {
    grid.map(|length| length.div_ceil(side))
}

/// Number of tiles of the batch.
fn count(shape: &ConvShape, side: usize) -> usize {
    shape.batch * tiles(shape.grid, side).iter().product::<usize>()
}

/// The convolution of `x` `[B, C_in, H, W]` with `weight` `[C_out, C_in, 3, 3]`, plus `bias` `[C_out]` and
/// `residual` `[B, C_out, H', W']` if given.
pub(crate) fn forward(
    shape: &ConvShape,
    x: Planes<'_>,
    weight: &[f32],
    bias: Option<&[f32]>,
    residual: Option<Planes<'_>>,
) -> Vec<f32> {
    match side(shape) {
        Some(2) => super::forward::forward::<super::transforms::F2, 2, 4>(shape, x, weight, bias, residual),
        _ => super::forward::forward::<super::transforms::F4, 4, 6>(shape, x, weight, bias, residual),
    }
}

/// The input gradient of [`forward`] from the output gradient.
pub(crate) fn grad_input(shape: &ConvShape, weight: &[f32], grad: &[f32]) -> Vec<f32> {
    let [from, to] = shape.channels;
    let mirrored = ConvShape {
        channels: [to, from],
        image: shape.grid,
        grid: shape.image,
        padding: shape.padding.map(|padding| 2 - padding),
        ..*shape
    };
    forward(&mirrored, Planes::unchanged(grad, shape.grid), &mirror(weight, shape.channels), None, None)
}

/// Transposes weights `[C_out, C_in, 3, 3]` to `[C_in, C_out, 3, 3]` and rotates the kernels by 180°.
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

    use super::super::super::conv;
    use super::super::super::planes::Planes;
    use super::super::{forward, transforms};
    use super::ConvShape;
    use crate::Resample;

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

    /// Measures the thresholds of `side`: `cargo test --release -p dalle2-kernels --lib sizes_by_shape -- --ignored --nocapture`
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
                let planes = Planes::unchanged(&x, shape.image);
                let columns = || conv::forward_im2col(&shape, &x, &tensor, &vec![0.0; channels]);
                let small = || forward::forward::<transforms::F2, 2, 4>(&shape, planes, &weight, None, None);
                let large = || forward::forward::<transforms::F4, 4, 6>(&shape, planes, &weight, None, None);
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
