//! Products with weights in bf16, by instructions of the processor.
//!
//! The other factor is rounded to bf16 as well and laid out in pairs of channels, a row of pairs for all positions: of
//! an image, with the padding around it and one row behind the other, or of the rows of a matrix. A tap of a
//! convolution is then an offset into these rows, and what lies between the end of an image's row and the next is
//! computed and left out.

use std::borrow::Cow;

use half::{bf16, slice::HalfFloatSliceExt};
use macerator::{Simd, WithSimd};
use rayon::prelude::*;

use super::conv::ConvShape;
use super::parallel::{WORTH_A_THREAD, for_each, vectorized};
use super::raw::bf16::{BLOCK, DEPTH, Instructions, Operands, Pair, Tap, product};
use super::scratch::Scratch;
use super::{NarrowSize, raw};

/// Bytes of pairs that are worked on together: the second cache holds them beside the weights of a block.
const AT_A_TIME: usize = 1 << 20;
/// Tasks that share the columns of a matrix.
const TASKS: usize = 16;
/// Blocks of positions from which on the weights of a convolution are copied into the order in which they are read.
const WORTH_A_COPY: usize = 8;
/// Pairs of a cache line.
const LINE: usize = 16;
/// Rows and columns that are transposed together.
const SQUARE: usize = 16;

/// Rows of pairs that are worked on.
static PAIRS: Scratch<Pair> = Scratch::new();

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
    let pitch = width + columns - 1;
    let at_a_time = (AT_A_TIME / (from / 2 * pitch * size_of::<Pair>())).saturating_sub(rows - 1).clamp(1, height);
    let at_a_time = height.div_ceil(height.div_ceil(at_a_time));
    let offsets: Vec<usize> = (0..rows * columns).map(|tap| tap / columns * pitch + tap % columns).collect();
    let image = shape.image[0] * shape.image[1];
    let mut y = vec![0.0; shape.batch * to * height * width];
    for (x, y) in x.chunks(from * image).zip(y.chunks_mut(to * height * width)) {
        for first in (0..height).step_by(at_a_time) {
            let count = at_a_time.min(height - first);
            let lines = Lines { first, count, width, pitch };
            let plane = odd_lines(lines.blocks() * BLOCK + (rows - 1) * pitch + columns - 1);
            PAIRS.with(from / 2 * plane, |pairs| {
                pairs.par_chunks_mut(plane).zip(x.par_chunks(2 * image)).for_each(|(pairs, planes)| {
                    vectorized(OfImage { shape, planes, lines: first..first + count + rows - 1, pitch, pairs });
                });
                y.par_chunks_mut(BLOCK * height * width).enumerate().for_each(|(task, y)| {
                    let outputs = Outputs::new(task * BLOCK, to);
                    let weight = Weight::new(outputs.of(weight), &offsets, lines.blocks() >= WORTH_A_COPY);
                    let mut block = [[0.0; BLOCK]; BLOCK];
                    for number in 0..lines.blocks() {
                        product(with, &weight.with(&pairs[number * BLOCK..], plane), &mut block);
                        let planes =
                            y.chunks_mut(height * width).zip(outputs.of(bias).iter().zip(&block).skip(outputs.known));
                        for (y, (bias, block)) in planes {
                            lines.place(number, *bias, block, y);
                        }
                    }
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
                vectorized(OfRows { x, inputs, first: square * SQUARE, plane, pairs });
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
                    let weight = Weight::new(these.of(weight), &[0], false);
                    for (number, rows) in rows.chunks_mut(BLOCK).enumerate() {
                        product(with, &weight.with(&pairs[number * BLOCK..], plane), &mut block);
                        vectorized(ToRows { block: &block, known: these.known, bias: these.of(bias), first, rows });
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
    values: Cow<'a, [bf16]>,
    stride: usize,
    step: usize,
    taps: Vec<Tap>,
    depth: usize,
}

impl<'a> Weight<'a> {
    /// From `[BLOCK, taps, inputs]` and the place of each tap among the columns. If `copied`, as `[inputs / DEPTH, taps,
    /// BLOCK, DEPTH]`, which is the order of the products: rows far apart keep the processor from reading ahead.
    fn new(values: &'a [bf16], columns: &[usize], copied: bool) -> Self {
        let (stride, count) = (values.len() / BLOCK, columns.len());
        let depth = stride / count;
        let taps =
            |each: usize| columns.iter().enumerate().map(|(i, at)| Tap { weight: i * each, column: *at }).collect();
        if !copied {
            return Self { values: values.into(), stride, step: DEPTH, taps: taps(depth), depth };
        }
        let mut copy = Vec::with_capacity(values.len());
        for first in (0..depth).step_by(DEPTH) {
            for tap in 0..count {
                for row in values.chunks_exact(stride) {
                    copy.extend_from_slice(&row[tap * depth + first..][..DEPTH]);
                }
            }
        }
        let each = BLOCK * DEPTH;
        Self { values: copy.into(), stride: DEPTH, step: count * each, taps: taps(each), depth }
    }

    /// The product with pairs, of which rows are `plane` apart.
    fn with<'b>(&'b self, columns: &'b [Pair], plane: usize) -> Operands<'b> {
        let Self { values, stride, step, taps, depth } = self;
        Operands { weight: values, stride: *stride, step: *step, columns, plane, taps, depth: *depth }
    }
}

/// Rows of an image one behind the other.
struct Lines {
    /// First row.
    first: usize,
    count: usize,
    width: usize,
    /// From the start of a row to the next.
    pitch: usize,
}

impl Lines {
    /// Blocks that cover all pixels.
    fn blocks(&self) -> usize {
        (self.count * self.pitch - (self.pitch - self.width)).div_ceil(BLOCK)
    }

    /// Puts what a block has of these rows into the image `y`.
    fn place(&self, block: usize, bias: f32, values: &[f32; BLOCK], y: &mut [f32]) {
        let mut lane = 0;
        while lane < BLOCK {
            let at = block * BLOCK + lane;
            let (row, column) = (at / self.pitch, at % self.pitch);
            if row >= self.count {
                return;
            }
            let run = (self.pitch - column).min(BLOCK - lane);
            if let Some(inside) = self.width.checked_sub(column) {
                let inside = inside.min(run);
                let y = &mut y[(self.first + row) * self.width + column..][..inside];
                y.iter_mut().zip(&values[lane..]).for_each(|(y, value)| *y = value + bias);
            }
            lane += run;
        }
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
struct OfImage<'a> {
    shape: &'a ConvShape,
    planes: &'a [f32],
    /// Rows of the padded image.
    lines: std::ops::Range<usize>,
    pitch: usize,
    pairs: &'a mut [Pair],
}

impl WithSimd for OfImage<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        let [height, width] = self.shape.image;
        let [top, left] = self.shape.padding;
        let (one, other) = self.planes.split_at(height * width);
        self.pairs.fill(0);
        for (row, line) in self.lines.enumerate() {
            let Some(y) = line.checked_sub(top).filter(|y| *y < height) else { continue };
            let to = &mut self.pairs[row * self.pitch + left..][..width];
            let (one, other) = (&one[y * width..][..width], &other[y * width..][..width]);
            for i in 0..width {
                to[i] = rounded(one[i]) | rounded(other[i]) << 16;
            }
        }
    }
}

/// Rows of pairs of the columns of a matrix.
struct OfRows<'a> {
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
            for (pair, to) in self.pairs.chunks_mut(self.plane).enumerate() {
                for i in 0..SQUARE {
                    to[square * SQUARE + i] = read[i][pair];
                }
            }
        }
    }
}

/// A block of the result, of which rows are positions.
struct ToRows<'a, 'b> {
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
        for output in 0..BLOCK {
            let bias = self.bias[output];
            for position in 0..BLOCK {
                turned[position][output] = self.block[output][position] + bias;
            }
        }
        let count = BLOCK - self.known;
        for (row, turned) in self.rows.iter_mut().zip(&turned) {
            row[self.first..][..count].copy_from_slice(&turned[self.known..]);
        }
    }
}
