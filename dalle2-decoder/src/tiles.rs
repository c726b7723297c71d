//! Tiled evaluation of a network: the tile bounds the memory, not the image.
//!
//! Every evaluation of the network is tiled, and the sampler steps on the whole image: neighbouring tiles share their
//! noise and agree again after every step (Bar-Tal et al. 2023, MultiDiffusion, arXiv 2302.08113, section 3). Within the
//! overlap the outputs are blended with weights that fall linearly towards a tile's edge. The result differs from an untiled
//! evaluation in the statistics of group norms, which are the tile's, and in pixels within the receptive field of an edge.

use burn::prelude::*;
use dalle2_core::Tiling;

/// Starts of the tiles along a side: one tile minus the overlap apart, and the last one aligned with the end.
fn starts(length: usize, tiling: Tiling) -> Vec<usize> {
    if length <= tiling.size {
        return vec![0];
    }
    let last = length - tiling.size;
    let mut starts: Vec<usize> = (0..last).step_by(tiling.size - tiling.overlap).collect();
    starts.push(last);
    starts
}

/// Weights of a tile's positions: 1 inside, falling over the overlap towards edges that adjoin other tiles.
fn ramp(start: usize, length: usize, tiling: Tiling) -> Vec<f32> {
    let size = tiling.size.min(length);
    let weight = |i: usize| {
        let before = if start > 0 { i + 1 } else { usize::MAX };
        let after = if start + size < length { size - i } else { usize::MAX };
        (before.min(after) as f32 / (tiling.overlap + 1) as f32).min(1.0)
    };
    (0..size).map(weight).collect()
}

/// Applies `network` to each tile of `input` and blends the results.
///
/// # Shapes
/// `input: [B, C, H, W]`; `network: [B, C, h, w]` -> `[B, C', h, w]`, h and w at most a tile's side
pub(crate) fn in_tiles(
    input: &Tensor<4>,
    tiling: Tiling,
    mut network: impl FnMut(Tensor<4>) -> Tensor<4>,
) -> Tensor<4> {
    let [_, _, height, width] = input.dims();
    let device = input.device();
    let mut sum: Option<(Tensor<4>, Tensor<4>)> = None;
    for y in starts(height, tiling) {
        for x in starts(width, tiling) {
            let (rows, columns) = (ramp(y, height, tiling), ramp(x, width, tiling));
            let (h, w) = (rows.len(), columns.len());
            let tile = input.clone().slice_dim(2, y..y + h).slice_dim(3, x..x + w);
            let out = network(tile);
            let [b, c, ..] = out.dims();
            let rows = Tensor::<1>::from_floats(rows.as_slice(), &device).reshape([1, 1, h, 1]);
            let weight = Tensor::<1>::from_floats(columns.as_slice(), &device).reshape([1, 1, 1, w]) * rows;
            let (values, weights) = sum.take().unwrap_or_else(|| {
                (Tensor::zeros([b, c, height, width], &device), Tensor::zeros([1, 1, height, width], &device))
            });
            let at = |full: Tensor<4>, part: Tensor<4>| {
                let [n, channels, ..] = full.dims();
                let area = [0..n, 0..channels, y..y + h, x..x + w];
                let present = full.clone().slice(area.clone());
                full.slice_assign(area, present + part)
            };
            sum = Some((at(values, out * weight.clone()), at(weights, weight)));
        }
    }
    // There is at least one tile, because an image has at least one pixel.
    sum.map_or_else(|| input.clone(), |(values, weights)| values / weights)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Distribution, Tolerance};

    use super::*;

    const TILING: Tiling = Tiling { size: 8, overlap: 4 };

    #[test]
    fn tiles_cover_the_side_and_overlap_enough() {
        assert_eq!(starts(8, TILING), [0]);
        assert_eq!(starts(5, TILING), [0]);
        assert_eq!(starts(20, TILING), [0, 4, 8, 12]);
        assert_eq!(starts(18, TILING), [0, 4, 8, 10]);
        for length in 9..40 {
            let starts = starts(length, TILING);
            assert_eq!(starts.last().unwrap() + 8, length);
            assert!(starts.windows(2).all(|pair| pair[1] > pair[0] && pair[0] + 8 - pair[1] >= 4), "{starts:?}");
        }
    }

    #[test]
    fn weights_are_positive_and_full_at_the_edge_of_the_image() {
        assert_eq!(ramp(0, 20, TILING), [1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]);
        assert_eq!(ramp(12, 20, TILING), [0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!(ramp(0, 6, TILING), [1.0; 6]);
    }

    #[test]
    fn a_function_of_single_pixels_is_independent_of_tiles() {
        let device = Device::flex();
        let input = Tensor::<4>::random([2, 3, 13, 22], Distribution::Normal(0.0, 1.0), &device);
        let mut largest = [0, 0];
        let f = |x: Tensor<4>| x.clone().slice_dim(1, 0..1) * 2.0 + x.slice_dim(1, 2..3).square();
        let out = in_tiles(&input, TILING, |tile| {
            let [_, _, h, w] = tile.dims();
            largest = [largest[0].max(h), largest[1].max(w)];
            f(tile)
        });
        assert_eq!(largest, [8, 8]);
        out.into_data().assert_approx_eq::<f32>(&f(input).into_data(), Tolerance::rel_abs(1e-5, 1e-5));
    }

    #[test]
    fn tiles_that_disagree_are_blended_without_a_step() {
        let device = Device::flex();
        let mut value = 0.0;
        let out = in_tiles(&Tensor::zeros([1, 1, 8, 12], &device), TILING, |tile| {
            value += 1.0;
            tile.ones_like() * value
        });
        let row = out.slice_dim(2, 0..1).into_data().try_to_vec::<f32>().unwrap();
        assert_eq!((row[0], row[11]), (1.0, 2.0));
        assert!(row.windows(2).all(|pair| (0.0..=0.2 + 1e-6).contains(&(pair[1] - pair[0]))), "{row:?}");
    }
}
