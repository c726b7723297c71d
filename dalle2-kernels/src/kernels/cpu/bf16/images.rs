//! Convolutions of stride 1.

use half::bf16;
use macerator::{Simd, WithSimd};
use rayon::prelude::*;

use super::super::conv::ConvShape;
use super::super::parallel::vectorized;
use super::super::raw::bf16::{BLOCK, Instructions, Pair, product};
use super::super::scratch::Scratch;
use super::blocks::{GROUP_BYTES, Outputs, PAIR_BUFFER, Weight, odd_cache_lines, to_bf16_bits};

/// Weights are rearranged from this number of position blocks on; tuned with `cargo xtask peer`.
const MIN_COPY_BLOCKS: usize = 16;

/// Rearranged weights.
static WEIGHT_BUFFER: Scratch<bf16> = Scratch::new();

/// The convolution of `x` `[B, C_in, H, W]` with stride 1 and `weight` `[C_out, kh, kw, C_in]`, plus `bias` `[C_out]`.
pub(crate) fn convolution(with: Instructions, shape: &ConvShape, x: &[f32], weight: &[bf16], bias: &[f32]) -> Vec<f32> {
    let [from, to] = shape.channels;
    let ([height, width], [rows, columns]) = (shape.grid, shape.kernel);
    let (pitch, gap) = (width + columns - 1, rows - 1);
    // Several images if they fit a group, or else a few rows of one.
    let row_bytes = from / 2 * pitch * size_of::<Pair>();
    let images = (GROUP_BYTES / (row_bytes * (height + gap))).clamp(1, shape.batch);
    let group_rows = (GROUP_BYTES / row_bytes).saturating_sub(gap).clamp(1, height);
    let group_rows = height.div_ceil(height.div_ceil(group_rows));
    let offsets: Vec<usize> = (0..rows * columns).map(|tap| tap / columns * pitch + tap % columns).collect();
    let (image, plane) = (shape.image[0] * shape.image[1], height * width);
    let mut y = vec![0.0; shape.batch * to * plane];
    for (x, y) in x.chunks(images * from * image).zip(y.chunks_mut(images * to * plane)) {
        for first in (0..height).step_by(group_rows) {
            let count = group_rows.min(height - first);
            let band = Band { images: x.len() / (from * image), first, count, gap, width, pitch };
            let length = odd_cache_lines(band.blocks() * BLOCK + gap * pitch + columns - 1);
            PAIR_BUFFER.with(from / 2 * length, |pairs| {
                pairs.par_chunks_mut(length).enumerate().for_each(|(pair, pairs)| {
                    vectorized(PackImages { shape, x, pair, band: &band, pairs });
                });
                let mut tasks: Vec<Vec<&mut [f32]>> = (0..to.div_ceil(BLOCK)).map(|_| Vec::new()).collect();
                for y in y.chunks_mut(to * plane) {
                    tasks.iter_mut().zip(y.chunks_mut(BLOCK * plane)).for_each(|(task, planes)| task.push(planes));
                }
                tasks.into_par_iter().enumerate().for_each(|(task, mut planes)| {
                    let outputs = Outputs::new(task * BLOCK, to);
                    let (weight, bias) = (outputs.of(weight), outputs.of(bias));
                    let rearranged = band.blocks() >= MIN_COPY_BLOCKS;
                    WEIGHT_BUFFER.with(if rearranged { weight.len() } else { 0 }, |copy| {
                        let weight = Weight::new(weight, &offsets, rearranged.then_some(copy));
                        let mut block = [[0.0; BLOCK]; BLOCK];
                        for number in 0..band.blocks() {
                            product(with, &weight.with(&pairs[number * BLOCK..], length), &mut block);
                            let overlap = outputs.overlap;
                            vectorized(StorePlanes {
                                block: &block,
                                overlap,
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

/// The same range of rows of several images.
struct Band {
    images: usize,
    /// First row.
    first: usize,
    count: usize,
    /// Additional rows per image that the kernel reads.
    gap: usize,
    width: usize,
    /// Distance between row starts.
    pitch: usize,
}

/// Adjacent pixels of a block.
struct PixelRun {
    lane: usize,
    image: usize,
    /// Index of the first pixel in its plane.
    at: usize,
    length: usize,
}

impl Band {
    /// Distance between images, in rows.
    fn rows(&self) -> usize {
        self.count + self.gap
    }

    /// Number of blocks that cover all pixels.
    fn blocks(&self) -> usize {
        ((self.images * self.rows() - self.gap) * self.pitch - (self.pitch - self.width)).div_ceil(BLOCK)
    }

    /// The pixels of a block.
    fn runs(&self, block: usize) -> impl Iterator<Item = PixelRun> {
        let mut lane = 0;
        let runs = std::iter::from_fn(move || {
            let (row, column) = ((block * BLOCK + lane) / self.pitch, (block * BLOCK + lane) % self.pitch);
            let (image, row) = (row / self.rows(), row % self.rows());
            let length = (self.pitch - column).min(BLOCK - lane);
            let inside = self.width.saturating_sub(column).min(length);
            let inside = if row < self.count { inside } else { 0 };
            let run = PixelRun { lane, image, at: (self.first + row) * self.width + column, length: inside };
            lane += length;
            (length > 0 && image < self.images).then_some(run)
        });
        runs.filter(|run| run.length > 0)
    }
}

/// Packs the planes of two channels into a row of pairs.
struct PackImages<'a> {
    shape: &'a ConvShape,
    /// `[images, C_in, H, W]`
    x: &'a [f32],
    pair: usize,
    band: &'a Band,
    pairs: &'a mut [Pair],
}

impl WithSimd for PackImages<'_> {
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
                    to[i] = to_bf16_bits(one[i]) | to_bf16_bits(other[i]) << 16;
                }
            }
        }
    }
}

/// Stores a block of the result whose columns are pixels.
struct StorePlanes<'a, 'b> {
    /// `[outputs, pixels]`
    block: &'a [[f32; BLOCK]; BLOCK],
    /// Number of outputs that the previous block has written.
    overlap: usize,
    bias: &'a [f32],
    band: &'a Band,
    /// Index of the block.
    number: usize,
    /// Pixels of a plane.
    plane: usize,
    /// `[outputs, H, W]` of each image.
    planes: &'a mut [&'b mut [f32]],
}

impl WithSimd for StorePlanes<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        for PixelRun { lane, image, at, length } in self.band.runs(self.number) {
            let planes = self.planes[image].chunks_mut(self.plane);
            for (output, plane) in planes.enumerate() {
                let (values, bias) = (&self.block[self.overlap + output][lane..], self.bias[self.overlap + output]);
                let to = &mut plane[at..at + length];
                for i in 0..length {
                    to[i] = values[i] + bias;
                }
            }
        }
    }
}
