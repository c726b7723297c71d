//! Scaled dot-product attention without the matrix of weights in memory: a task takes a few queries through all keys.
//!
//! The softmax sees whole rows, so it is the usual one; only the division by its sum is left to the end, where it
//! meets fewer values. Keys and values are brought into panels once for all queries of a head.

use macerator::{Scalar, Simd, WithSimd};
use rayon::prelude::*;

use super::panels::Matrix;
use super::parallel::vectorized;
use super::raw::{PANEL, ROWS, Row, Rows, Unwritten, product, update};
use super::rows::{RowMask, exponentials};
use super::scratch::Scratch;

/// Queries that are worked on together.
const QUERIES: usize = 3 * ROWS;
/// Heads from which a task takes a whole head, if it has few queries: its keys and values then stay in a cache.
const MANY_HEADS: usize = 16;
const FEW_QUERIES: usize = 8 * QUERIES;

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

/// Keys and values in panels, of all heads and of one, and the scores of a block of queries.
static PACKED: Scratch<Row> = Scratch::new();
static PACKED_HEAD: Scratch<Row> = Scratch::new();
static SCORES: Scratch<f32> = Scratch::new();

/// `softmax(scale · q · kᵀ) · v` for `q` `[heads, queries, width]` and `k` and `v` `[heads, keys, width]`; what the mask
/// leaves out counts as a score of `f32::MIN`.
pub fn forward(shape: &AttentionShape, [q, k, v]: [&[f32]; 3], mask: Option<&RowMask<'_>>, scale: f32) -> Vec<f32> {
    let AttentionShape { heads, queries, width, .. } = *shape;
    let mut y = Unwritten::new(heads * queries, width);
    let block = |(head, block, y): (usize, usize, Rows<'_>), packed: &[Row]| {
        let first_row = head * queries + block * QUERIES;
        let rows = QUERIES.min(queries - block * QUERIES);
        let q = &q[first_row * width..][..rows * width];
        SCORES.with(rows * shape.keys.next_multiple_of(PANEL), |scores| {
            vectorized(Block { shape, q, packed, mask, scale, first_row, scores, y });
        });
    };
    let of_heads = y.rows().chunks(queries).enumerate();
    if heads >= MANY_HEADS && queries <= FEW_QUERIES {
        let of_heads: Vec<(usize, Rows<'_>)> = of_heads.collect();
        of_heads.into_par_iter().for_each(|(head, y)| {
            PACKED_HEAD.with(shape.packed(), |packed| {
                shape.pack(head, k, v, packed);
                y.chunks(QUERIES).enumerate().for_each(|(i, y)| block((head, i, y), packed));
            });
        });
    } else {
        PACKED.with(heads * shape.packed(), |packed| {
            let each = packed.par_chunks_mut(shape.packed()).enumerate();
            each.for_each(|(head, packed)| shape.pack(head, k, v, packed));
            let blocks = of_heads.flat_map(|(head, y)| y.chunks(QUERIES).enumerate().map(move |(i, y)| (head, i, y)));
            let blocks: Vec<(usize, usize, Rows<'_>)> = blocks.collect();
            blocks.into_par_iter().for_each(|task| {
                let packed = &packed[task.0 * shape.packed()..][..shape.packed()];
                block(task, packed);
            });
        });
    }
    y.finish()
}

impl AttentionShape {
    /// Rows of the panels of one head's keys.
    fn packed_keys(&self) -> usize {
        self.keys.div_ceil(PANEL) * self.width
    }

    /// Rows of the panels of one head's keys and values.
    fn packed(&self) -> usize {
        self.packed_keys() + self.width.div_ceil(PANEL) * self.keys
    }

    /// Brings keys and values of a head into panels.
    fn pack(&self, head: usize, k: &[f32], v: &[f32], packed: &mut [Row]) {
        let Self { keys, width, .. } = *self;
        let (to_keys, to_values) = packed.split_at_mut(self.packed_keys());
        let range = head * keys * width..(head + 1) * keys * width;
        Matrix::new(&k[range.clone()], [keys, width]).transposed().pack(0..width, 0, to_keys);
        Matrix::new(&v[range], [keys, width]).pack(0..keys, 0, to_values);
    }
}

/// Some queries of one head.
struct Block<'a> {
    shape: &'a AttentionShape,
    q: &'a [f32],
    /// Keys, then values.
    packed: &'a [Row],
    mask: Option<&'a RowMask<'a>>,
    scale: f32,
    /// Of all rows of queries.
    first_row: usize,
    /// `[rows, keys]`, a row as long as its panels.
    scores: &'a mut [f32],
    y: Rows<'a>,
}

impl WithSimd for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self) {
        let AttentionShape { keys, width, .. } = *self.shape;
        let rows = self.q.len() / width;
        let stride = keys.next_multiple_of(PANEL);
        let scores = self.scores;
        let (of_keys, of_values) = self.packed.split_at(self.shape.packed_keys());
        for (panel, of_panel) in of_keys.chunks_exact(width).enumerate() {
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
            let mask = self.mask.map(|mask| (mask, self.first_row + row));
            factors[row] = exponentials::<S>(&mut scores[..keys], self.scale, mask);
        }
        let mut of_panel = [[0.0; PANEL]; QUERIES];
        for (panel, values) in of_values.chunks_exact(keys).enumerate() {
            let columns = panel * PANEL..((panel + 1) * PANEL).min(width);
            let size = [rows, columns.len()];
            product::<S, false>(size, (scores, stride), values, (of_panel.as_flattened_mut(), PANEL), false);
            for row in 0..rows {
                update(&mut of_panel[row], |value| value * factors[row].splat::<S>());
                self.y.write([row, columns.start], &of_panel[row][..columns.len()]);
            }
        }
    }
}
