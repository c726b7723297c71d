//! 1 × 1 convolution: a product with the weights at every pixel.

use macerator::{Simd, WithSimd};
use rayon::prelude::*;

use super::conv::ConvShape;
use super::parallel::vectorized;
use super::raw::{PANEL, ROWS, Row, product};
use super::scratch::Scratch;

/// Most channels that are taken together: their panel and some rows of weights fit the first cache.
const DEPTH: usize = 128;
/// Fewest and most output channels of a task. Each task reads all panels, so the fewer there are the better.
const OUTPUTS: [usize; 2] = [4 * ROWS, 20 * ROWS];
/// Bytes of the input that are laid out in panels at a time: they fit the second cache or nearly so.
const AT_A_TIME: usize = 2 << 20;

/// `[panels, C_in]` of the pixels that are worked on.
static PACKED: Scratch<Row> = Scratch::new();

/// Whether a convolution is one of these.
pub fn applies(shape: &ConvShape) -> bool {
    shape.kernel == [1, 1] && shape.stride == [1, 1] && shape.padding == [0, 0] && shape.image == shape.grid
}

/// The convolution of `x` `[B, C_in, H, W]` with `weight` `[C_out, C_in]`, plus `bias` `[C_out]` if there is one.
pub fn forward(shape: &ConvShape, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let [from, to] = shape.channels;
    let pixels = shape.grid[0] * shape.grid[1];
    let mut y = vec![0.0; shape.batch * to * pixels];
    let of_task = to.div_ceil(rayon::current_num_threads()).next_multiple_of(ROWS).clamp(OUTPUTS[0], OUTPUTS[1]);
    let at_a_time = (AT_A_TIME / (from * size_of::<Row>())).max(1);
    for (x, y) in x.chunks(from * pixels).zip(y.chunks_mut(to * pixels)) {
        for first in (0..pixels).step_by(PANEL * at_a_time) {
            let count = at_a_time.min((pixels - first).div_ceil(PANEL));
            PACKED.with(count * from, |packed| {
                packed.par_chunks_mut(from).enumerate().for_each(|(panel, packed)| {
                    let columns = columns(first + panel * PANEL, pixels);
                    for (to, from) in packed.iter_mut().zip(x.chunks_exact(pixels)) {
                        to[..columns.len()].copy_from_slice(&from[columns.clone()]);
                    }
                });
                y.par_chunks_mut(of_task * pixels).enumerate().for_each(|(task, y)| {
                    let outputs = task * of_task..(task * of_task + of_task).min(to);
                    let weight = &weight[outputs.start * from..outputs.end * from];
                    let bias = bias.map(|bias| &bias[outputs]);
                    vectorized(Outputs { first, pixels, from, weight, bias, packed, y });
                });
            });
        }
    }
    y
}

/// The pixels of a panel.
fn columns(first: usize, pixels: usize) -> std::ops::Range<usize> {
    first..(first + PANEL).min(pixels)
}

/// Some output channels of some pixels of an image.
struct Outputs<'a> {
    /// First pixel.
    first: usize,
    /// Pixels of the image.
    pixels: usize,
    /// Input channels.
    from: usize,
    /// `[channels of the task, C_in]`
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    /// `[panels, C_in]`
    packed: &'a [Row],
    /// `[channels of the task, pixels]`
    y: &'a mut [f32],
}

impl WithSimd for Outputs<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        let Self { first, pixels, from, weight, .. } = self;
        let depth = from.div_ceil(from.div_ceil(DEPTH));
        let mut products = [[0.0; PANEL]; OUTPUTS[1]];
        for (panel, packed) in self.packed.chunks_exact(from).enumerate() {
            let columns = columns(first + panel * PANEL, pixels);
            let size = [weight.len() / from, columns.len()];
            for (block, packed) in packed.chunks(depth).enumerate() {
                let weight = &weight[block * depth..];
                product::<S>(size, (weight, from), packed, (products.as_flattened_mut(), PANEL), block > 0);
            }
            for (output, (y, products)) in self.y.chunks_exact_mut(pixels).zip(&products).enumerate() {
                let bias = self.bias.map_or(0.0, |bias| bias[output]);
                y[columns.clone()].iter_mut().zip(products).for_each(|(y, product)| *y = product + bias);
            }
        }
    }
}
