//! Scaled dot-product attention without the full weight matrix: a task computes a block of queries against all keys.
//!
//! The softmax is computed over full rows; its normalisation is applied to the result, which has fewer elements. Keys and
//! values are packed into panels once per head.

use macerator::{Scalar, Simd, WithSimd};
use rayon::prelude::*;

use super::panels::Matrix;
use super::parallel::vectorized;
use super::raw::{PANEL, ROWS, Row, Rows, UninitRows, product, update};
use super::rows::{RowMask, exponentials};
use super::scratch::Scratch;

/// Queries per task, tuned with `cargo bench -p dalle2-kernels --bench ops`.
const QUERY_BLOCK: usize = 3 * ROWS;
/// From this number of heads on, with at most [`MAX_TASK_QUERIES`] queries each, a task computes one head, so that its
/// keys and values stay cached; tuned with the same benchmark.
const MIN_TASK_HEADS: usize = 16;
const MAX_TASK_QUERIES: usize = 8 * QUERY_BLOCK;

/// The shape of an attention.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionShape {
    /// Items of the batch times heads.
    pub heads: usize,
    /// Queries per head.
    pub queries: usize,
    /// Keys and values per head.
    pub keys: usize,
    /// Width of a query, a key and a value.
    pub width: usize,
}

/// Packed keys and values of all heads and of one head, and the scores of a block of queries.
static PACKED: Scratch<Row> = Scratch::new();
static PACKED_HEAD: Scratch<Row> = Scratch::new();
static SCORES: Scratch<f32> = Scratch::new();

/// `softmax(scale · q · kᵀ) · v` for `q` `[heads, queries, width]` and `k` and `v` `[heads, keys, width]`; masked
/// scores count as `f32::MIN`.
pub(crate) fn forward(
    shape: &AttentionShape,
    [q, k, v]: [&[f32]; 3],
    mask: Option<&RowMask<'_>>,
    scale: f32,
) -> Vec<f32> {
    let AttentionShape { heads, queries, width, .. } = *shape;
    let mut y = UninitRows::new(heads * queries, width);
    let block = |(head, block, y): (usize, usize, Rows<'_>), packed: &[Row]| {
        let first_row = head * queries + block * QUERY_BLOCK;
        let rows = QUERY_BLOCK.min(queries - block * QUERY_BLOCK);
        let q = &q[first_row * width..][..rows * width];
        SCORES.with(rows * shape.keys.next_multiple_of(PANEL), |scores| {
            vectorized(Block { shape, q, packed, mask, scale, first_row, scores, y });
        });
    };
    let heads_of_y = y.rows().chunks(queries).enumerate();
    if heads >= MIN_TASK_HEADS && queries <= MAX_TASK_QUERIES {
        let heads_of_y: Vec<(usize, Rows<'_>)> = heads_of_y.collect();
        heads_of_y.into_par_iter().for_each(|(head, y)| {
            PACKED_HEAD.with(shape.packed(), |packed| {
                shape.pack(head, k, v, packed);
                y.chunks(QUERY_BLOCK).enumerate().for_each(|(i, y)| block((head, i, y), packed));
            });
        });
    } else {
        PACKED.with(heads * shape.packed(), |packed| {
            let each = packed.par_chunks_mut(shape.packed()).enumerate();
            each.for_each(|(head, packed)| shape.pack(head, k, v, packed));
            let blocks =
                heads_of_y.flat_map(|(head, y)| y.chunks(QUERY_BLOCK).enumerate().map(move |(i, y)| (head, i, y)));
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
    /// Panel rows of the keys of one head.
    fn packed_keys(&self) -> usize {
        self.keys.div_ceil(PANEL) * self.width
    }

    /// Panel rows of the keys and values of one head.
    fn packed(&self) -> usize {
        self.packed_keys() + self.width.div_ceil(PANEL) * self.keys
    }

    /// Packs keys and values of a head into panels.
    fn pack(&self, head: usize, k: &[f32], v: &[f32], packed: &mut [Row]) {
        let Self { keys, width, .. } = *self;
        let (key_panels, value_panels) = packed.split_at_mut(self.packed_keys());
        let range = head * keys * width..(head + 1) * keys * width;
        Matrix::new(&k[range.clone()], [keys, width]).transposed().pack(0..width, 0, key_panels);
        Matrix::new(&v[range], [keys, width]).pack(0..keys, 0, value_panels);
    }
}

/// A block of queries of one head.
struct Block<'a> {
    shape: &'a AttentionShape,
    q: &'a [f32],
    /// Packed keys, then packed values.
    packed: &'a [Row],
    mask: Option<&'a RowMask<'a>>,
    scale: f32,
    /// Index of the first query over all heads.
    first_row: usize,
    /// `[rows, keys]`, with rows padded to full panels.
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
        let (key_panels, value_panels) = self.packed.split_at(self.shape.packed_keys());
        for (panel, keys_of_panel) in key_panels.chunks_exact(width).enumerate() {
            let columns = PANEL.min(keys - panel * PANEL);
            product::<S, false>(
                [rows, columns],
                (self.q, width),
                keys_of_panel,
                (&mut scores[panel * PANEL..], stride),
                false,
            );
        }
        let mut factors = [0.0; QUERY_BLOCK];
        for (row, scores) in scores.chunks_exact_mut(stride).enumerate() {
            let mask = self.mask.map(|mask| (mask, self.first_row + row));
            factors[row] = exponentials::<S>(&mut scores[..keys], self.scale, mask);
        }
        let mut panel_sums = [[0.0; PANEL]; QUERY_BLOCK];
        for (panel, values) in value_panels.chunks_exact(keys).enumerate() {
            let columns = panel * PANEL..((panel + 1) * PANEL).min(width);
            let size = [rows, columns.len()];
            product::<S, false>(size, (scores, stride), values, (panel_sums.as_flattened_mut(), PANEL), false);
            for row in 0..rows {
                update(&mut panel_sums[row], |value| value * factors[row].splat::<S>());
                self.y.write([row, columns.start], &panel_sums[row][..columns.len()]);
            }
        }
    }
}
