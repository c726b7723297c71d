//! Linear maps.

use half::bf16;
use macerator::{Simd, WithSimd};
use rayon::prelude::*;

use super::super::parallel::vectorized;
use super::super::raw::bf16::{BLOCK, Instructions, Pair, SQUARE, product, transpose};
use super::{AT_A_TIME, Outputs, PAIRS, Weight, odd_lines, rounded};

/// Tasks that share the columns of a matrix.
const TASKS: usize = 16;

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
