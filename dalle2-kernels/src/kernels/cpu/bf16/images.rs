//! Convolutions of stride 1.

use half::bf16;
use macerator::{Simd, WithSimd};
use rayon::prelude::*;

use super::super::conv::ConvShape;
use super::super::parallel::vectorized;
use super::super::raw::bf16::{BLOCK, Instructions, Pair, product};
use super::super::scratch::Scratch;
use super::{AT_A_TIME, Outputs, PAIRS, Weight, odd_lines, rounded};

/// Blocks of positions from which on the weights are copied into the order in which they are read.
const WORTH_A_COPY: usize = 16;

/// Weights in the order of their products.
static COPY: Scratch<bf16> = Scratch::new();

/// The convolution of `x` `[B, C_in, H, W]` with stride 1 and `weight` `[C_out, kh, kw, C_in]`, plus `bias` `[C_out]`.
pub fn convolution(with: Instructions, shape: &ConvShape, x: &[f32], weight: &[bf16], bias: &[f32]) -> Vec<f32> {
    let [from, to] = shape.channels;
    let ([height, width], [rows, columns]) = (shape.grid, shape.kernel);
    let (pitch, gap) = (width + columns - 1, rows - 1);
    // As many images as fit, or else a few rows of one.
    let of_row = from / 2 * pitch * size_of::<Pair>();
    let images = (AT_A_TIME / (of_row * (height + gap))).clamp(1, shape.batch);
    let at_a_time = (AT_A_TIME / of_row).saturating_sub(gap).clamp(1, height);
    let at_a_time = height.div_ceil(height.div_ceil(at_a_time));
    let offsets: Vec<usize> = (0..rows * columns).map(|tap| tap / columns * pitch + tap % columns).collect();
    let (image, plane) = (shape.image[0] * shape.image[1], height * width);
    let mut y = vec![0.0; shape.batch * to * plane];
    for (x, y) in x.chunks(images * from * image).zip(y.chunks_mut(images * to * plane)) {
        for first in (0..height).step_by(at_a_time) {
            let count = at_a_time.min(height - first);
            let band = Band { images: x.len() / (from * image), first, count, gap, width, pitch };
            let length = odd_lines(band.blocks() * BLOCK + gap * pitch + columns - 1);
            PAIRS.with(from / 2 * length, |pairs| {
                pairs.par_chunks_mut(length).enumerate().for_each(|(pair, pairs)| {
                    vectorized(OfImages { shape, x, pair, band: &band, pairs });
                });
                let mut tasks: Vec<Vec<&mut [f32]>> = (0..to.div_ceil(BLOCK)).map(|_| Vec::new()).collect();
                for y in y.chunks_mut(to * plane) {
                    tasks.iter_mut().zip(y.chunks_mut(BLOCK * plane)).for_each(|(task, planes)| task.push(planes));
                }
                tasks.into_par_iter().enumerate().for_each(|(task, mut planes)| {
                    let outputs = Outputs::new(task * BLOCK, to);
                    let (weight, bias) = (outputs.of(weight), outputs.of(bias));
                    let copied = band.blocks() >= WORTH_A_COPY;
                    COPY.with(if copied { weight.len() } else { 0 }, |copy| {
                        let weight = Weight::new(weight, &offsets, copied.then_some(copy));
                        let mut block = [[0.0; BLOCK]; BLOCK];
                        for number in 0..band.blocks() {
                            product(with, &weight.with(&pairs[number * BLOCK..], length), &mut block);
                            let known = outputs.known;
                            vectorized(ToPlanes {
                                block: &block,
                                known,
                                bias,
                                band: &band,
                                number,
                                plane,
                                planes: &mut planes,
                            });
                        }
                    });
                });
            });
        }
    }
    y
}

/// The same rows of some images, one behind the other.
struct Band {
    images: usize,
    /// First row.
    first: usize,
    count: usize,
    /// Further rows that the kernel reads of each image.
    gap: usize,
    width: usize,
    /// From the start of a row to the next.
    pitch: usize,
}

/// Pixels of a block that lie side by side.
struct Run {
    lane: usize,
    image: usize,
    /// Place of the first one in its plane.
    at: usize,
    length: usize,
}

impl Band {
    /// Rows from an image to the next.
    fn rows(&self) -> usize {
        self.count + self.gap
    }

    /// Blocks that cover all pixels.
    fn blocks(&self) -> usize {
        ((self.images * self.rows() - self.gap) * self.pitch - (self.pitch - self.width)).div_ceil(BLOCK)
    }

    /// What a block has of these rows.
    fn runs(&self, block: usize) -> impl Iterator<Item = Run> {
        let mut lane = 0;
        let pieces = std::iter::from_fn(move || {
            let (row, column) = ((block * BLOCK + lane) / self.pitch, (block * BLOCK + lane) % self.pitch);
            let (image, row) = (row / self.rows(), row % self.rows());
            let length = (self.pitch - column).min(BLOCK - lane);
            let inside = self.width.saturating_sub(column).min(length);
            let inside = if row < self.count { inside } else { 0 };
            let run = Run { lane, image, at: (self.first + row) * self.width + column, length: inside };
            lane += length;
            (length > 0 && image < self.images).then_some(run)
        });
        pieces.filter(|run| run.length > 0)
    }
}

/// A row of pairs of the planes of two channels.
struct OfImages<'a> {
    shape: &'a ConvShape,
    /// `[images, C_in, H, W]`
    x: &'a [f32],
    pair: usize,
    band: &'a Band,
    pairs: &'a mut [Pair],
}

impl WithSimd for OfImages<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        let [height, width] = self.shape.image;
        let [top, left] = self.shape.padding;
        let Band { first, pitch, .. } = *self.band;
        self.pairs.fill(0);
        for (image, x) in self.x.chunks_exact(self.shape.channels[0] * height * width).enumerate() {
            let (one, other) = x[2 * self.pair * height * width..][..2 * height * width].split_at(height * width);
            for row in 0..self.band.rows() {
                let Some(y) = (first + row).checked_sub(top).filter(|y| *y < height) else { continue };
                let to = &mut self.pairs[(image * self.band.rows() + row) * pitch + left..][..width];
                let (one, other) = (&one[y * width..][..width], &other[y * width..][..width]);
                for i in 0..width {
                    to[i] = rounded(one[i]) | rounded(other[i]) << 16;
                }
            }
        }
    }
}

/// A block of the result, of which columns are pixels.
struct ToPlanes<'a, 'b> {
    /// `[outputs, pixels]`
    block: &'a [[f32; BLOCK]; BLOCK],
    /// The outputs that were written before.
    known: usize,
    bias: &'a [f32],
    band: &'a Band,
    /// Number of the block.
    number: usize,
    /// Pixels of a plane.
    plane: usize,
    /// `[outputs, H, W]` of each image.
    planes: &'a mut [&'b mut [f32]],
}

impl WithSimd for ToPlanes<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        for Run { lane, image, at, length } in self.band.runs(self.number) {
            let planes = self.planes[image].chunks_mut(self.plane);
            for (output, plane) in planes.enumerate() {
                let (values, bias) = (&self.block[self.known + output][lane..], self.bias[self.known + output]);
                let to = &mut plane[at..at + length];
                for i in 0..length {
                    to[i] = values[i] + bias;
                }
            }
        }
    }
}
