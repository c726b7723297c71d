//! Linear layers.

use half::bf16;
use macerator::{Simd, WithSimd};
use rayon::prelude::*;

use super::super::parallel::vectorized;
use super::super::raw::bf16::{BLOCK, BLOCK_SIDE, Instructions, Pair, product, transpose};
use super::blocks::{GROUP_BYTES, Outputs, PAIR_BUFFER, Weight, odd_cache_lines, to_bf16_bits};

/// Number of tasks per product, tuned with `cargo xtask peer`.
const TASKS: usize = 16;

/// `x · weightᵀ` for `x` `[rows, inputs]` and `weight` `[outputs, inputs]`, plus `bias` `[outputs]`.
pub(crate) fn linear(
    with: Instructions,
    [inputs, outputs]: [usize; 2],
    x: &[f32],
    weight: &[bf16],
    bias: &[f32],
) -> Vec<f32> {
    let rows = x.len() / inputs;
    let mut y = vec![0.0; rows * outputs];
    let most = (GROUP_BYTES / (inputs / 2 * size_of::<Pair>())).next_multiple_of(BLOCK);
    let group_rows = rows.div_ceil(rows.div_ceil(most).max(1)).max(1);
    let task_columns = outputs.div_ceil(BLOCK).div_ceil(TASKS) * BLOCK;
    for (x, y) in x.chunks(group_rows * inputs).zip(y.chunks_mut(group_rows * outputs)) {
        let plane = odd_cache_lines((x.len() / inputs).next_multiple_of(BLOCK));
        PAIR_BUFFER.with(inputs / 2 * plane, |pairs| {
            pairs.par_chunks_mut(BLOCK_SIDE * plane).enumerate().for_each(|(square, pairs)| {
                vectorized(PackRows { with, x, inputs, first: square * BLOCK_SIDE, plane, pairs });
            });
            let mut tasks: Vec<Vec<&mut [f32]>> = (0..outputs.div_ceil(task_columns)).map(|_| Vec::new()).collect();
            for row in y.chunks_mut(outputs) {
                for (task, row) in tasks.iter_mut().zip(row.chunks_mut(task_columns)) {
                    task.push(row);
                }
            }
            tasks.into_par_iter().enumerate().for_each(|(task, mut rows)| {
                let count = rows.first().map_or(0, |row| row.len());
                let mut block = [[0.0; BLOCK]; BLOCK];
                for first in (0..count).step_by(BLOCK) {
                    let these = Outputs::new(task * task_columns + first, outputs);
                    let (weight, bias) = (Weight::new(these.of(weight), &[0], None), these.of(bias));
                    for (number, rows) in rows.chunks_mut(BLOCK).enumerate() {
                        product(with, &weight.with(&pairs[number * BLOCK..], plane), &mut block);
                        vectorized(StoreRows { with, block: &block, overlap: these.overlap, bias, first, rows });
                    }
                }
            });
        });
    }
    y
}

/// Packs two columns of a matrix into each row of pairs.
struct PackRows<'a> {
    with: Instructions,
    /// `[rows, inputs]`
    x: &'a [f32],
    inputs: usize,
    /// First pair of columns.
    first: usize,
    plane: usize,
    pairs: &'a mut [Pair],
}

impl WithSimd for PackRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        for (square, rows) in self.x.chunks(BLOCK_SIDE * self.inputs).enumerate() {
            let mut read = [[0; BLOCK_SIDE]; BLOCK_SIDE];
            for (read, row) in read.iter_mut().zip(rows.chunks(self.inputs)) {
                let row = &row[2 * self.first..][..2 * BLOCK_SIDE];
                for i in 0..BLOCK_SIDE {
                    read[i] = to_bf16_bits(row[2 * i]) | to_bf16_bits(row[2 * i + 1]) << 16;
                }
            }
            transpose(self.with, &mut read);
            for (to, read) in self.pairs.chunks_mut(self.plane).zip(&read) {
                to[square * BLOCK_SIDE..][..BLOCK_SIDE].copy_from_slice(read);
            }
        }
    }
}

/// Stores a block of the result, transposed to rows of positions.
struct StoreRows<'a, 'b> {
    with: Instructions,
    /// `[outputs, positions]`
    block: &'a [[f32; BLOCK]; BLOCK],
    /// Number of outputs that the previous block has written.
    overlap: usize,
    bias: &'a [f32],
    /// First column of these outputs in `rows`.
    first: usize,
    rows: &'a mut [&'b mut [f32]],
}

impl WithSimd for StoreRows<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        let mut transposed = [[0.0; BLOCK]; BLOCK];
        for outputs in [0, BLOCK_SIDE] {
            for positions in [0, BLOCK_SIDE] {
                let mut square = [[0; BLOCK_SIDE]; BLOCK_SIDE];
                for (to, from) in square.iter_mut().zip(&self.block[outputs..]) {
                    for (to, from) in to.iter_mut().zip(&from[positions..]) {
                        *to = from.to_bits();
                    }
                }
                transpose(self.with, &mut square);
                for (to, from) in transposed[positions..].iter_mut().zip(&square) {
                    let to = to[outputs..].iter_mut().zip(&self.bias[outputs..]);
                    for ((to, bias), from) in to.zip(from) {
                        *to = f32::from_bits(*from) + bias;
                    }
                }
            }
        }
        let count = BLOCK - self.overlap;
        for (row, transposed) in self.rows.iter_mut().zip(&transposed) {
            row[self.first..][..count].copy_from_slice(&transposed[self.overlap..]);
        }
    }
}
