//! Products with weights in bf16, by instructions of the processor.
//!
//! The other factor is rounded to bf16 as well and laid out in pairs of channels, a row of pairs for all positions: of
//! an image, with the padding around it and one row behind the other, or of the rows of a matrix. A tap of a
//! convolution is then an offset into these rows, and what lies between the end of an image's row and the next is
//! computed and left out.

use half::{bf16, slice::HalfFloatSliceExt};
use macerator::{Simd, WithSimd};
use rayon::prelude::*;

use super::conv::ConvShape;
use super::parallel::{WORTH_A_THREAD, for_each, vectorized};
use super::raw::bf16::{BLOCK, DEPTH, Instructions, Operands, Pair, SQUARE, Tap, product, transpose};
use super::scratch::Scratch;
use super::{NarrowSize, raw};

/// Bytes of pairs that are worked on together: the second cache holds them beside the weights of a block.
const AT_A_TIME: usize = 1 << 20;
/// Tasks that share the columns of a matrix.
const TASKS: usize = 16;
/// Blocks of positions from which on the weights of a convolution are copied into the order in which they are read.
const WORTH_A_COPY: usize = 16;
/// Pairs of a cache line.
const LINE: usize = 16;

/// Rows of pairs that are worked on, and weights in the order of their products.
static PAIRS: Scratch<Pair> = Scratch::new();
static COPY: Scratch<bf16> = Scratch::new();

/// The instructions for weights of this size, if there are any and they pay.
///
/// Vectors of pairs do twice the work of vectors of f32, and Winograd's method saves more of it.
pub fn instructions(size: NarrowSize) -> Option<Instructions> {
    let whole = size.inputs > 0 && size.inputs.is_multiple_of(DEPTH) && size.outputs >= BLOCK;
    let pays = |with: &Instructions| size.taps == 1 || *with == Instructions::Amx;
    raw::bf16::instructions().iter().copied().find(pays).filter(|_| whole)
}

/// Values of 16 bits in f32.
pub fn widened<T: Sync>(values: &[T]) -> Vec<f32>
where
    [T]: HalfFloatSliceExt,
{
    let mut wide = vec![0.0; values.len()];
    let chunks = wide.par_chunks_mut(WORTH_A_THREAD).zip(values.par_chunks(WORTH_A_THREAD));
    for_each(chunks, values.len(), |_, (wide, values)| values.convert_to_f32_slice(wide));
    wide
}

/// Where the rows of a tensor begin and how far apart the values of a row are, for any order in memory.
#[derive(Debug)]
pub struct Rows {
    pub starts: Vec<usize>,
    pub length: usize,
    pub step: usize,
}

/// The rows as `convert` rounds them, one behind the other.
pub fn narrowed<T: Copy + Default + Send>(values: &[f32], rows: &Rows, convert: impl Fn(f32) -> T + Sync) -> Vec<T> {
    let Rows { starts, length, step } = rows;
    let mut narrow = vec![T::default(); starts.len() * length];
    // Rows of a transposed matrix lie side by side: some together read whole cache lines.
    let chunks = narrow.par_chunks_mut(SQUARE * length).zip(starts.par_chunks(SQUARE));
    for_each(chunks, starts.len() * length, |_, (narrow, starts)| {
        for i in 0..*length {
            for (row, start) in starts.iter().enumerate() {
                narrow[row * length + i] = convert(values[start + i * step]);
            }
        }
    });
    narrow
}

/// Rounds to the nearest bf16, or to even between two.
pub fn to_bf16(x: f32) -> bf16 {
    bf16::from_bits(rounded(x) as u16)
}

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

/// `x · weightᵀ` for `x` `[rows, inputs]` and `weight` `[outputs, inputs]`, plus `bias` `[outputs]`.
pub fn linear(with: Instructions, [inputs, outputs]: [usize; 2], x: &[f32], weight: &[bf16], bias: &[f32]) -> Vec<f32> {
    let rows = x.len() / inputs;
    let mut y = vec![0.0; rows * outputs];
    let most = (AT_A_TIME / (inputs / 2 * size_of::<Pair>())).next_multiple_of(BLOCK);
    let at_a_time = rows.div_ceil(rows.div_ceil(most).max(1)).max(1);
    let of_task = outputs.div_ceil(BLOCK).div_ceil(TASKS) * BLOCK;
    for (x, y) in x.chunks(at_a_time * inputs).zip(y.chunks_mut(at_a_time * outputs)) {
        let plane = odd_lines((x.len() / inputs).next_multiple_of(BLOCK));
        PAIRS.with(inputs / 2 * plane, |pairs| {
            pairs.par_chunks_mut(SQUARE * plane).enumerate().for_each(|(square, pairs)| {
                vectorized(OfRows { with, x, inputs, first: square * SQUARE, plane, pairs });
            });
            let mut tasks: Vec<Vec<&mut [f32]>> = (0..outputs.div_ceil(of_task)).map(|_| Vec::new()).collect();
            for row in y.chunks_mut(outputs) {
                for (task, row) in tasks.iter_mut().zip(row.chunks_mut(of_task)) {
                    task.push(row);
                }
            }
            tasks.into_par_iter().enumerate().for_each(|(task, mut rows)| {
                let count = rows.first().map_or(0, |row| row.len());
                let mut block = [[0.0; BLOCK]; BLOCK];
                for first in (0..count).step_by(BLOCK) {
                    let these = Outputs::new(task * of_task + first, outputs);
                    let (weight, bias) = (Weight::new(these.of(weight), &[0], None), these.of(bias));
                    for (number, rows) in rows.chunks_mut(BLOCK).enumerate() {
                        product(with, &weight.with(&pairs[number * BLOCK..], plane), &mut block);
                        vectorized(ToRows { with, block: &block, known: these.known, bias, first, rows });
                    }
                }
            });
        });
    }
    y
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

/// Rounds to the nearest bf16, or to even between two.
#[inline(always)]
fn rounded(x: f32) -> u32 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { bits >> 16 | 0x40 } else { nearest }
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

/// Rows of pairs of the columns of a matrix.
struct OfRows<'a> {
    with: Instructions,
    /// `[rows, inputs]`
    x: &'a [f32],
    inputs: usize,
    /// First pair of columns.
    first: usize,
    plane: usize,
    pairs: &'a mut [Pair],
}

impl WithSimd for OfRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        for (square, rows) in self.x.chunks(SQUARE * self.inputs).enumerate() {
            let mut read = [[0; SQUARE]; SQUARE];
            for (read, row) in read.iter_mut().zip(rows.chunks(self.inputs)) {
                let row = &row[2 * self.first..][..2 * SQUARE];
                for i in 0..SQUARE {
                    read[i] = rounded(row[2 * i]) | rounded(row[2 * i + 1]) << 16;
                }
            }
            transpose(self.with, &mut read);
            for (to, read) in self.pairs.chunks_mut(self.plane).zip(&read) {
                to[square * SQUARE..][..SQUARE].copy_from_slice(read);
            }
        }
    }
}

/// A block of the result, of which rows are positions.
struct ToRows<'a, 'b> {
    with: Instructions,
    /// `[outputs, positions]`
    block: &'a [[f32; BLOCK]; BLOCK],
    /// The outputs that were written before.
    known: usize,
    bias: &'a [f32],
    /// First column of these outputs in `rows`.
    first: usize,
    rows: &'a mut [&'b mut [f32]],
}

impl WithSimd for ToRows<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        let mut turned = [[0.0; BLOCK]; BLOCK];
        for outputs in [0, SQUARE] {
            for positions in [0, SQUARE] {
                let mut square = [[0; SQUARE]; SQUARE];
                for (to, from) in square.iter_mut().zip(&self.block[outputs..]) {
                    for (to, from) in to.iter_mut().zip(&from[positions..]) {
                        *to = from.to_bits();
                    }
                }
                transpose(self.with, &mut square);
                for (to, from) in turned[positions..].iter_mut().zip(&square) {
                    let to = to[outputs..].iter_mut().zip(&self.bias[outputs..]);
                    for ((to, bias), from) in to.zip(from) {
                        *to = f32::from_bits(*from) + bias;
                    }
                }
            }
        }
        let count = BLOCK - self.known;
        for (row, turned) in self.rows.iter_mut().zip(&turned) {
            row[self.first..][..count].copy_from_slice(&turned[self.known..]);
        }
    }
}
