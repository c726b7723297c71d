//! The choice of instructions, and blocks of weights.

use half::bf16;

use super::super::raw::bf16::{BLOCK, DEPTH_STEP, Instructions, Operands, Pair, Tap};
use super::super::scratch::Scratch;
use super::super::{WeightShape, raw};

/// Bytes of packed pairs per group, which the second-level cache holds beside the weights of a block; tuned with
/// `cargo xtask peer pipeline --compute bf16`.
pub(super) const GROUP_BYTES: usize = 1 << 20;
/// Pairs of a cache line.
const CACHE_LINE: usize = 16;

/// Buffers of packed pairs.
pub(super) static PAIR_BUFFER: Scratch<Pair> = Scratch::new();

/// Returns the instruction set for weights of this shape, or `None` if f32 is faster.
///
/// AVX-512 BF16 doubles the throughput of f32, but Winograd's method saves more multiplications than that.
pub(crate) fn instructions(size: WeightShape) -> Option<Instructions> {
    let divisible = size.inputs > 0 && size.inputs.is_multiple_of(DEPTH_STEP) && size.outputs >= BLOCK;
    let pays = |with: &Instructions| size.taps == 1 || *with == Instructions::Amx;
    raw::bf16::instructions().iter().copied().find(pays).filter(|_| divisible)
}

/// Rounds up to an odd number of cache lines, in pairs: rows an even number of lines apart would evict each other from the
/// first-level cache.
pub(super) fn odd_cache_lines(pairs: usize) -> usize {
    (pairs.div_ceil(CACHE_LINE) | 1) * CACHE_LINE
}

/// Output channels of a block.
pub(super) struct Outputs {
    pub(super) first: usize,
    /// Number of channels that the previous block has computed already, non-zero only for the last block.
    pub(super) overlap: usize,
    all: usize,
}

impl Outputs {
    /// Creates the block from the channel `first` on, moved back so that it ends with the last channel of `all`.
    pub(super) fn new(first: usize, all: usize) -> Self {
        let moved = first.min(all - BLOCK);
        Self { first: moved, overlap: first - moved, all }
    }

    /// Returns the part of these channels of a slice `[all, ..]`.
    pub(super) fn of<'a, T>(&self, data: &'a [T]) -> &'a [T] {
        let each = data.len() / self.all;
        &data[self.first * each..][..BLOCK * each]
    }
}

/// The weights of a block of output channels.
pub(super) struct Weight<'a> {
    data: &'a [bf16],
    stride: usize,
    step: usize,
    taps: Vec<Tap>,
    depth: usize,
}

impl<'a> Weight<'a> {
    /// Creates a view of `[BLOCK, taps, inputs]` with the column offset of each tap. With a `copy` buffer the weights are
    /// rearranged to `[inputs / DEPTH_STEP, taps, BLOCK, DEPTH_STEP]`, the order of the products, because the hardware
    /// prefetcher does not follow rows that are far apart.
    pub(super) fn new(data: &'a [bf16], columns: &[usize], copy: Option<&'a mut [bf16]>) -> Self {
        let (stride, count) = (data.len() / BLOCK, columns.len());
        let depth = stride / count;
        let taps =
            |each: usize| columns.iter().enumerate().map(|(i, at)| Tap { weight: i * each, column: *at }).collect();
        let Some(copy) = copy else { return Self { data, stride, step: DEPTH_STEP, taps: taps(depth), depth } };
        let copy_of = copy.as_chunks_mut::<DEPTH_STEP>().0;
        for (row, data) in data.chunks_exact(stride).enumerate() {
            for (i, data) in data.as_chunks::<DEPTH_STEP>().0.iter().enumerate() {
                let (tap, step) = (i / (depth / DEPTH_STEP), i % (depth / DEPTH_STEP));
                copy_of[(step * count + tap) * BLOCK + row] = *data;
            }
        }
        let each = BLOCK * DEPTH_STEP;
        Self { data: copy, stride: DEPTH_STEP, step: count * each, taps: taps(each), depth }
    }

    /// Returns the operands of the product with packed pairs, whose rows are `plane` apart.
    pub(super) fn with<'b>(&'b self, columns: &'b [Pair], plane: usize) -> Operands<'b> {
        let Self { data, stride, step, taps, depth } = self;
        Operands { weight: data, stride: *stride, step: *step, columns, plane, taps, depth: *depth }
    }
}

/// Rounds to the nearest bf16, ties to even, and returns its bits.
#[inline(always)]
pub(super) fn to_bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { bits >> 16 | 0x40 } else { nearest }
}
