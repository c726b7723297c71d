//! Scaled dot-product attention without the matrix of weights in memory: a task takes a few queries through all keys.
//!
//! The softmax sees whole rows, so it is the usual one; only the division by its sum is left to the end, where it
//! meets fewer values. Keys and values are brought into panels once for all queries of a head.

use macerator::{Scalar, Simd, WithSimd};
use rayon::prelude::*;

use super::math::exp;
use super::panels::Matrix;
use super::parallel::vectorized;
use super::raw::{PANEL, ROWS, Row, maximum, product, sum, update};
use super::rows::RowMask;
use super::scratch::Scratch;

/// Queries of a task.
const QUERIES: usize = 3 * ROWS;

/// The shape of an attention.
#[derive(Debug, Clone, Copy)]
pub struct AttentionShape {
    /// Items of the batch times heads.
    pub heads: usize,
    /// Queries of each.
    pub queries: usize,
    /// Keys and values of each.
    pub keys: usize,
    /// Width of a query, a key and a value.
    pub width: usize,
}

/// Keys and values in panels, and the scores of a block of queries.
static PACKED: Scratch<Row> = Scratch::new();
static SCORES: Scratch<f32> = Scratch::new();

/// `softmax(scale · q · kᵀ) · v` for `q` `[heads, queries, width]` and `k` and `v` `[heads, keys, width]`; what the mask
/// leaves out counts as a score of `f32::MIN`.
pub fn forward(shape: &AttentionShape, [q, k, v]: [&[f32]; 3], mask: Option<&RowMask<'_>>, scale: f32) -> Vec<f32> {
    let AttentionShape { heads, queries, keys, width } = *shape;
    let panels = [keys.div_ceil(PANEL), width.div_ceil(PANEL)];
    let (of_keys, of_values) = (panels[0] * width, panels[1] * keys);
    let mut y = vec![0.0; heads * queries * width];
    PACKED.with(heads * (of_keys + of_values), |packed| {
        packed.par_chunks_mut(of_keys + of_values).enumerate().for_each(|(head, packed)| {
            let (to_keys, to_values) = packed.split_at_mut(of_keys);
            let range = head * keys * width..(head + 1) * keys * width;
            Matrix::new(&k[range.clone()], [keys, width]).transposed().pack(0..width, 0, to_keys);
            Matrix::new(&v[range], [keys, width]).pack(0..keys, 0, to_values);
        });
        let tasks: Vec<(usize, usize, &mut [f32])> = y
            .chunks_mut(queries * width)
            .enumerate()
            .flat_map(|(head, y)| y.chunks_mut(QUERIES * width).enumerate().map(move |(block, y)| (head, block, y)))
            .collect();
        tasks.into_par_iter().for_each(|(head, block, y)| {
            let first = block * QUERIES;
            let q = &q[(head * queries + first) * width..][..y.len()];
            let (keys_of_head, values) =
                packed[head * (of_keys + of_values)..][..of_keys + of_values].split_at(of_keys);
            let (rows, first_row) = (y.len() / width, head * queries + first);
            SCORES.with(rows * keys.next_multiple_of(PANEL), |scores| {
                vectorized(Block { shape, q, keys: keys_of_head, values, mask, scale, first_row, scores, y });
            });
        });
    });
    y
}

/// Some queries of one head.
struct Block<'a> {
    shape: &'a AttentionShape,
    q: &'a [f32],
    keys: &'a [Row],
    values: &'a [Row],
    mask: Option<&'a RowMask<'a>>,
    scale: f32,
    /// Of all rows of queries.
    first_row: usize,
    /// `[rows, keys]`, a row as long as its panels.
    scores: &'a mut [f32],
    y: &'a mut [f32],
}

impl WithSimd for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        let AttentionShape { keys, width, .. } = *self.shape;
        let rows = self.y.len() / width;
        let stride = keys.next_multiple_of(PANEL);
        let scores = self.scores;
        for (panel, of_panel) in self.keys.chunks_exact(width).enumerate() {
            let columns = PANEL.min(keys - panel * PANEL);
            product::<S, false>(
                [rows, columns],
                (self.q, width),
                of_panel,
                (&mut scores[panel * PANEL..], stride),
                false,
            );
        }
        let mut factors = [0.0; QUERIES];
        for (row, scores) in scores.chunks_exact_mut(stride).enumerate() {
            let scores = &mut scores[..keys];
            // Without a mask the scale, which is positive, waits for the exponent.
            let scale = match self.mask {
                Some(mask) => {
                    mask.scale(self.first_row + row, self.scale, scores);
                    1.0
                }
                None => self.scale,
            };
            let (max, scale) = (maximum::<S>(scores).splat::<S>(), scale.splat::<S>());
            update(scores, |score| exp((score - max) * scale));
            factors[row] = (1.0 / sum::<S>(scores, |e| e)) as f32;
        }
        let mut of_panel = [[0.0; PANEL]; QUERIES];
        for (panel, values) in self.values.chunks_exact(keys).enumerate() {
            let columns = panel * PANEL..((panel + 1) * PANEL).min(width);
            let size = [rows, columns.len()];
            product::<S, false>(size, (scores, stride), values, (of_panel.as_flattened_mut(), PANEL), false);
            for ((y, values), factor) in self.y.chunks_exact_mut(width).zip(&of_panel).zip(factors) {
                y[columns.clone()].iter_mut().zip(values).for_each(|(y, value)| *y = value * factor);
            }
        }
    }
}
