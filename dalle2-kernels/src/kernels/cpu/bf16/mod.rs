//! Products with weights in bf16, by instructions of the processor.
//!
//! The other factor is rounded to bf16 as well and laid out in pairs of channels, a row of pairs for all positions: of
//! an image, with the padding around it and one row behind the other, or of the rows of a matrix. A tap of a
//! convolution is then an offset into these rows, and what lies between the end of an image's row and the next is
//! computed and left out.

mod convert;
mod images;
mod rows;

use half::bf16;

use super::raw::bf16::{BLOCK, DEPTH, Instructions, Operands, Pair, Tap};
use super::scratch::Scratch;
use super::{WeightShape, raw};

pub use convert::{Rows, cast_to_16_bits, cast_to_f32};
pub use images::convolution;
pub use rows::linear;

/// Bytes of pairs that are worked on together: the second cache holds them beside the weights of a block.
const AT_A_TIME: usize = 1 << 20;
/// Pairs of a cache line.
const LINE: usize = 16;

/// Rows of pairs that are worked on.
static PAIRS: Scratch<Pair> = Scratch::new();

/// The instructions for weights of this size, if there are any and they pay.
///
/// Vectors of pairs do twice the work of vectors of f32, and Winograd's method saves more of it.
pub fn instructions(size: WeightShape) -> Option<Instructions> {
    let whole = size.inputs > 0 && size.inputs.is_multiple_of(DEPTH) && size.outputs >= BLOCK;
    let pays = |with: &Instructions| size.taps == 1 || *with == Instructions::Amx;
    raw::bf16::instructions().iter().copied().find(pays).filter(|_| whole)
}

/// The least odd number of cache lines that holds `pairs`, in pairs: rows that are an even number of lines apart would
/// drive each other out of the first cache.
fn odd_lines(pairs: usize) -> usize {
    (pairs.div_ceil(LINE) | 1) * LINE
}

/// Output channels of a block.
struct Outputs {
    first: usize,
    /// The first of them belong to the block before; only the last block has such.
    known: usize,
    all: usize,
}

impl Outputs {
    /// The block that begins with the channel `first`, moved so that it ends with the last channel of `all`.
    fn new(first: usize, all: usize) -> Self {
        let moved = first.min(all - BLOCK);
        Self { first: moved, known: first - moved, all }
    }

    /// Their part of what has as many values for each channel.
    fn of<'a, T>(&self, values: &'a [T]) -> &'a [T] {
        let each = values.len() / self.all;
        &values[self.first * each..][..BLOCK * each]
    }
}

/// The weights of a block of output channels.
struct Weight<'a> {
    values: &'a [bf16],
    stride: usize,
    step: usize,
    taps: Vec<Tap>,
    depth: usize,
}

impl<'a> Weight<'a> {
    /// From `[BLOCK, taps, inputs]` and the place of each tap among the columns. With memory for a `copy`, in it as
    /// `[inputs / DEPTH, taps, BLOCK, DEPTH]`, the order of the products: rows far apart keep the processor from reading
    /// ahead.
    fn new(values: &'a [bf16], columns: &[usize], copy: Option<&'a mut [bf16]>) -> Self {
        let (stride, count) = (values.len() / BLOCK, columns.len());
        let depth = stride / count;
        let taps =
            |each: usize| columns.iter().enumerate().map(|(i, at)| Tap { weight: i * each, column: *at }).collect();
        let Some(copy) = copy else { return Self { values, stride, step: DEPTH, taps: taps(depth), depth } };
        let copy_of = copy.as_chunks_mut::<DEPTH>().0;
        for (row, values) in values.chunks_exact(stride).enumerate() {
            for (i, values) in values.as_chunks::<DEPTH>().0.iter().enumerate() {
                let (tap, step) = (i / (depth / DEPTH), i % (depth / DEPTH));
                copy_of[(step * count + tap) * BLOCK + row] = *values;
            }
        }
        let each = BLOCK * DEPTH;
        Self { values: copy, stride: DEPTH, step: count * each, taps: taps(each), depth }
    }

    /// The product with pairs, of which rows are `plane` apart.
    fn with<'b>(&'b self, columns: &'b [Pair], plane: usize) -> Operands<'b> {
        let Self { values, stride, step, taps, depth } = self;
        Operands { weight: values, stride: *stride, step: *step, columns, plane, taps, depth: *depth }
    }
}

/// Rounds to the nearest bf16, or to even between two.
#[inline(always)]
fn rounded(x: f32) -> u32 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { bits >> 16 | 0x40 } else { nearest }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::super::super::super::Resample;
    use super::super::conv::ConvShape;
    use super::{convolution, linear, raw};

    /// Small integers, whose products and sums are exact.
    fn integers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 13) as f32 - 6.0).collect()
    }

    fn narrow(values: &[f32]) -> Vec<bf16> {
        values.iter().map(|value| bf16::from_f32(*value)).collect()
    }

    /// Every kind of instructions, also those that this processor would not be given.
    #[test]
    fn products_of_integers_are_exact_with_all_instructions() {
        for with in raw::bf16::instructions() {
            let (rows, from, to) = (37, 64, 57);
            let [x, weight, bias] = [(rows * from, 1), (to * from, 2), (to, 3)].map(|(n, seed)| integers(n, seed));
            let found = linear(*with, [from, to], &x, &narrow(&weight), &bias);
            for (i, found) in found.iter().enumerate() {
                let (x, weight) = (&x[i / to * from..][..from], &weight[i % to * from..][..from]);
                let product: f32 = x.iter().zip(weight).map(|(x, w)| x * w).sum();
                assert_eq!(*found, product + bias[i % to], "{with:?}, linear, {i}");
            }
            // Two images of 5 × 7 pixels with a border.
            let [batch, height, width] = [2, 5, 7];
            let image = [height, width];
            let shape = ConvShape {
                batch,
                channels: [from, to],
                image,
                grid: image,
                kernel: [3, 3],
                stride: [1, 1],
                padding: [1, 1],
                resample: Resample::Keep,
                residual: Resample::Keep,
            };
            let x = integers(batch * from * height * width, 4);
            let weight = integers(to * 9 * from, 5);
            let found = convolution(*with, &shape, &x, &narrow(&weight), &bias);
            for (i, found) in found.iter().enumerate() {
                let (column, row) = (i % width, i / width % height);
                let (output, item) = (i / width / height % to, i / width / height / to);
                let mut expected = bias[output];
                for tap in 0..9 {
                    let (y, x_at) = ((row + tap / 3).wrapping_sub(1), (column + tap % 3).wrapping_sub(1));
                    if y < height && x_at < width {
                        let pixel = |input: usize| x[((item * from + input) * height + y) * width + x_at];
                        let weight = &weight[(output * 9 + tap) * from..][..from];
                        expected += weight.iter().enumerate().map(|(input, w)| w * pixel(input)).sum::<f32>();
                    }
                }
                assert_eq!(*found, expected, "{with:?}, convolution, {i}");
            }
        }
    }
}
