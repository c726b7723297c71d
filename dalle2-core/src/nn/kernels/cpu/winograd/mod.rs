//! 3 × 3 convolution by Winograd's minimal filtering F(4 × 4, 3 × 3) (Lavin & Gray 2015, Fast Algorithms for
//! Convolutional Neural Networks, section 4): a quarter of the multiplications of the direct sum.
//!
//! An output tile of 4 × 4 pixels depends on a patch of 6 × 6. With the points 0, ±1, ±2 and ∞, the patch becomes
//! `V = Bᵀ d B` and the filter `U = G g Gᵀ`, both 6 × 6; channels are summed by one matrix product for each of the 36
//! points, and `Aᵀ M A` is the tile. The gradient of the input is a convolution with the mirrored weights; that of the
//! weights is made of the transposed maps around products with the same factors.

mod forward;
mod maps;
mod panel;
mod weights;

use rayon::prelude::*;

use super::conv::{ConvGradients, ConvShape};

pub use forward::forward;

/// Side of an output tile.
const TILE: usize = 4;
/// Points of the transformed domain.
const POINTS: usize = 36;

/// Tiles and input channels below which transforming the weights costs more than it saves.
const LEAST_TILES: usize = 16;
const LEAST_CHANNELS: usize = 16;

/// Whether this method applies to a convolution, and pays.
pub fn applies(shape: &ConvShape) -> bool {
    let per_image = tiles(shape.grid).iter().product::<usize>();
    shape.kernel == [3, 3]
        && shape.stride == [1, 1]
        && shape.padding.iter().all(|padding| *padding <= 2)
        && shape.channels.iter().all(|channels| *channels >= LEAST_CHANNELS)
        && per_image * shape.batch >= LEAST_TILES
}

/// Tiles over a grid, down and across.
fn tiles(grid: [usize; 2]) -> [usize; 2] {
    grid.map(|side| side.div_ceil(TILE))
}

/// The gradients of [`forward`], given that of its result.
pub fn backward(
    shape: &ConvShape,
    x: &[f32],
    weight: &[f32],
    grad: &[f32],
    [wants_x, wants_weight]: [bool; 2],
) -> ConvGradients {
    let of_x = wants_x.then(|| {
        let [from, to] = shape.channels;
        let mirrored = ConvShape {
            channels: [to, from],
            image: shape.grid,
            grid: shape.image,
            padding: shape.padding.map(|padding| 2 - padding),
            ..*shape
        };
        forward(&mirrored, grad, &mirror(weight, shape.channels), None)
    });
    ConvGradients { x: of_x, weight: wants_weight.then(|| weights::gradient(shape, x, grad)) }
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
