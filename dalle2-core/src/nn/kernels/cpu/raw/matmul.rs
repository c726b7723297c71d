//! Products of matrices, written to new memory without clearing it first.
//!
//! The right factor is brought into panels by blocks of its rows and groups of its columns, which the second cache
//! holds. Then each task takes a strip of rows of the left factor through all panels of the group. Of a transposed left
//! factor the strip is copied first, so that the values of a few rows lie together. If the left factor has few rows,
//! each task takes all of them through a few panels of its own instead, and no task waits for another.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use macerator::{Simd, WithSimd};
use rayon::prelude::*;

use super::super::panels::Matrix;
use super::super::parallel::vectorized;
use super::super::scratch::Scratch;
use super::tile::{Operands, PANEL, ROWS, Row};

/// Most rows of the right factor in a block.
const DEPTH: usize = 384;
/// Bytes of its columns in a group.
const AT_A_TIME: usize = 1 << 20;
/// Panels that are made in one go.
const TOGETHER: usize = 4;
/// Most rows of the left factor in a strip.
const STRIP: usize = 16 * ROWS;

/// Most rows of a left factor that has few.
const FEW: usize = 3 * STRIP;

/// Panels of the right factor, and strips of a transposed left one.
static PACKED: Scratch<Row> = Scratch::new();
static GROUPED: Scratch<[f32; ROWS]> = Scratch::new();

/// `a · b`, plus `bias` in every row if there is one.
///
/// # Panics
/// If the factors do not fit each other, or the bias not the result.
pub fn product(a: Matrix<'_>, b: Matrix<'_>, bias: Option<&[f32]>) -> Vec<f32> {
    let length = a.size()[0] * b.size()[1];
    let mut c = Vec::with_capacity(length);
    fill(&a, &b, bias, &mut c.spare_capacity_mut()[..length], true);
    // SAFETY: `fill` has written all of them.
    unsafe { c.set_len(length) };
    c
}

/// `a(i) · b(i)` for so many i, one after the other, all of the same size.
///
/// # Panics
/// If the factors do not fit each other, or the products are not all of a size.
pub fn products<'a>(count: usize, factors: impl Fn(usize) -> [Matrix<'a>; 2] + Sync) -> Vec<f32> {
    if count == 0 {
        return Vec::new();
    }
    let [a, b] = factors(0);
    let of_one = a.size()[0] * b.size()[1];
    let mut c = Vec::with_capacity(count * of_one);
    c.spare_capacity_mut()[..count * of_one].par_chunks_mut(of_one.max(1)).enumerate().for_each(|(i, c)| {
        let [a, b] = factors(i);
        fill(&a, &b, None, c, false);
    });
    // SAFETY: the chunks cover all of them, or there are none, and `fill` has written every chunk.
    unsafe { c.set_len(count * of_one) };
    c
}

/// Writes every value of `a · b + bias` to `c`.
///
/// # Panics
/// If the factors do not fit each other, or `c` and the bias not the product.
fn fill(a: &Matrix<'_>, b: &Matrix<'_>, bias: Option<&[f32]>, c: &mut [MaybeUninit<f32>], threads: bool) {
    let ([rows, depth], [inner, columns]) = (a.size(), b.size());
    assert_eq!(depth, inner, "product: columns of the left factor and rows of the right one");
    assert_eq!(c.len(), rows * columns, "product: values of the result");
    assert!(bias.is_none_or(|bias| bias.len() == columns), "product: values of the bias");
    if depth == 0 {
        for (i, c) in c.iter_mut().enumerate() {
            c.write(bias.map_or(0.0, |bias| bias[i % columns]));
        }
    }
    if c.is_empty() || depth == 0 {
        return;
    }
    let of_block = depth.div_ceil(depth.div_ceil(DEPTH));
    let blocks = || (0..depth).step_by(of_block).map(|first| first..(first + of_block).min(depth));
    let of_panels = |first: usize, count: usize| first * PANEL..((first + count) * PANEL).min(columns);
    let panels = columns.div_ceil(PANEL);
    let product = Product { a, b, bias, c: Target { first: c.as_mut_ptr().cast(), columns, values: PhantomData } };
    let parts = panels.div_ceil(TOGETHER);
    if threads && rows <= FEW && parts >= 2 * rayon::current_num_threads() && !a.is_transposed() {
        (0..parts).into_par_iter().for_each(|task| {
            let across = of_panels(task * TOGETHER, TOGETHER);
            PACKED.with(TOGETHER * of_block, |packed| {
                for block in blocks() {
                    let packed = &mut packed[..across.len().div_ceil(PANEL) * block.len()];
                    b.pack(block.clone(), across.start, packed);
                    // SAFETY: no other task has these columns, and the blocks come in order.
                    unsafe { product.strip(0..rows, &block, packed, &across) };
                }
            });
        });
        return;
    }
    let min_len = if threads { 1 } else { usize::MAX };
    let group = (AT_A_TIME / (of_block * size_of::<Row>())).clamp(1, panels);
    let strips = rows.div_ceil(STRIP).next_multiple_of(if threads { rayon::current_num_threads() } else { 1 });
    let of_strip = rows.div_ceil(strips).next_multiple_of(ROWS);
    for block in blocks() {
        for first in (0..panels).step_by(group) {
            let across = of_panels(first, group);
            PACKED.with(across.len().div_ceil(PANEL) * block.len(), |packed| {
                let tasks = packed.par_chunks_mut(TOGETHER * block.len()).enumerate().with_min_len(min_len);
                tasks.for_each(|(i, panels)| b.pack(block.clone(), across.start + i * TOGETHER * PANEL, panels));
                (0..rows.div_ceil(of_strip)).into_par_iter().with_min_len(min_len).for_each(|i| {
                    let rows = i * of_strip..((i + 1) * of_strip).min(rows);
                    // SAFETY: no other task has these rows, and the blocks come in order.
                    unsafe { product.strip(rows, &block, packed, &across) };
                });
            });
        }
    }
}

/// Where a product goes.
#[derive(Clone, Copy)]
struct Target<'a> {
    first: *mut f32,
    columns: usize,
    values: PhantomData<&'a mut [MaybeUninit<f32>]>,
}

// SAFETY: a target stands for a slice that can be sent; who writes to it says that nobody else writes there.
unsafe impl Send for Target<'_> {}
// SAFETY: as above.
unsafe impl Sync for Target<'_> {}

/// A product that is worked on.
struct Product<'a> {
    a: &'a Matrix<'a>,
    b: &'a Matrix<'a>,
    bias: Option<&'a [f32]>,
    /// As large as the product.
    c: Target<'a>,
}

impl Product<'_> {
    /// Adds the product of a block of the depth in some rows and columns, whose panels are in `packed`; writes it, with
    /// the bias, if it is the first block.
    ///
    /// # Safety
    /// Nobody else may read or write these rows in these columns meanwhile, and unless `block` is the first, this must
    /// have been called for the one before.
    unsafe fn strip(&self, rows: Range<usize>, block: &Range<usize>, packed: &[Row], across: &Range<usize>) {
        let ([height, depth], [_, width]) = (self.a.size(), self.b.size());
        assert!(rows.end <= height && across.end <= width && block.end <= depth, "product: a strip lies inside");
        let (values, stride) = self.a.in_memory();
        let groups = if self.a.is_transposed() { rows.len().div_ceil(ROWS) } else { 0 };
        GROUPED.with(groups * block.len(), |grouped| {
            let left = if self.a.is_transposed() {
                together(values, stride, block, &rows, grouped);
                Left::Grouped(grouped)
            } else {
                Left::Rows(&values[rows.start * stride + block.start..], stride)
            };
            let (add, bias) = (block.start > 0, self.bias.map(|bias| &bias[across.clone()]));
            vectorized(Strip { left, rows, packed, depth: block.len(), across: across.clone(), c: self.c, bias, add });
        });
    }
}

/// Copies some rows of a matrix whose columns follow each other, [`ROWS`] of them together, `[groups, columns]`.
fn together(values: &[f32], stride: usize, columns: &Range<usize>, rows: &Range<usize>, to: &mut [[f32; ROWS]]) {
    for (k, column) in columns.clone().enumerate() {
        let column = &values[column * stride..][rows.clone()];
        let (whole, rest) = column.as_chunks::<ROWS>();
        for (group, from) in whole.iter().enumerate() {
            to[group * columns.len() + k] = *from;
        }
        if !rest.is_empty() {
            to[whole.len() * columns.len() + k][..rest.len()].copy_from_slice(rest);
        }
    }
}

/// Rows of a left factor.
enum Left<'a> {
    /// Each in one piece, so far apart.
    Rows(&'a [f32], usize),
    /// `[groups, depth]`
    Grouped(&'a [[f32; ROWS]]),
}

/// Some rows of a product, in some columns, for some of the depth.
struct Strip<'a> {
    left: Left<'a>,
    rows: Range<usize>,
    /// `[panels, depth]`
    packed: &'a [Row],
    depth: usize,
    across: Range<usize>,
    /// Has the rows and columns in question, for nobody else.
    c: Target<'a>,
    /// Of the columns in question.
    bias: Option<&'a [f32]>,
    /// Whether the rows of `c` were written before in these columns, and the product is to be added.
    add: bool,
}

impl WithSimd for Strip<'_> {
    type Output = ();

    /// Writes all of the rows in the columns in question.
    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        let Self { left, rows, packed, depth, across, c, bias, add } = self;
        let bias = bias.filter(|_| !add);
        if let Some(bias) = bias {
            assert_eq!(bias.len(), across.len(), "product: values of the bias");
            for row in rows.clone() {
                // SAFETY: `c` has these columns of this row, and the bias as many values.
                unsafe {
                    let to = c.first.add(row * c.columns + across.start);
                    std::ptr::copy_nonoverlapping(bias.as_ptr(), to, bias.len());
                }
            }
        }
        // Where there is something to add to, it was written: above or, if `add`, before.
        let adds = add || bias.is_some();
        let mut edge = [[0.0; PANEL]; ROWS];
        for first in (0..rows.len()).step_by(ROWS) {
            let count = ROWS.min(rows.len() - first);
            for (panel, b) in packed.chunks_exact(depth).enumerate() {
                let start = across.start + panel * PANEL;
                let wanted = PANEL.min(across.end - start);
                // SAFETY: `c` has this row and this column.
                let place = unsafe { c.first.add((rows.start + first) * c.columns + start) };
                let (to, ldc, accumulate) = match wanted {
                    PANEL => (place, c.columns, adds),
                    _ => (edge.as_flattened_mut().as_mut_ptr(), PANEL, false),
                };
                match left {
                    Left::Rows(values, lda) => {
                        let a = &values[first * lda..];
                        assert!(a.len() >= (count - 1) * lda + depth, "product: the left factor is too short");
                        let operands = Operands { a: a.as_ptr(), lda, b, c: to, ldc, columns: wanted, accumulate };
                        // SAFETY: the left factor is long enough, as was just asserted. `c` has a whole panel in each
                        // of these rows, or `edge` has. They were written before if they are added to.
                        unsafe { operands.product::<S, false>(count) };
                    }
                    Left::Grouped(groups) => {
                        let a = groups[first / ROWS * depth..][..depth].as_flattened();
                        let operands = Operands { a: a.as_ptr(), lda: 0, b, c: to, ldc, columns: wanted, accumulate };
                        // SAFETY: as above, and a group has `depth` times the values of all its rows.
                        unsafe { operands.product::<S, true>(count) };
                    }
                }
                if wanted < PANEL {
                    for (row, edge) in edge.iter().enumerate().take(count) {
                        for (column, value) in edge.iter().enumerate().take(wanted) {
                            // SAFETY: `c` has this column of this row, and for what may be read see `adds`.
                            unsafe {
                                let to = place.add(row * c.columns + column);
                                to.write(if adds { to.read() + value } else { *value });
                            }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::panels::Matrix;
    use super::{DEPTH, FEW, STRIP, product, products};

    /// Small integers, whose products and sums are exact.
    fn integers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 13) as f32 - 6.0).collect()
    }

    fn at(matrix: &Matrix<'_>, row: usize, column: usize) -> f32 {
        let (values, stride) = matrix.in_memory();
        values[if matrix.is_transposed() { column * stride + row } else { row * stride + column }]
    }

    fn expected(a: &Matrix<'_>, b: &Matrix<'_>, bias: Option<&[f32]>) -> Vec<f32> {
        let ([rows, depth], [_, columns]) = (a.size(), b.size());
        let value = |row, column| {
            (0..depth).map(|k| at(a, row, k) * at(b, k, column)).sum::<f32>() + bias.map_or(0.0, |bias| bias[column])
        };
        (0..rows * columns).map(|i| value(i / columns, i % columns)).collect()
    }

    #[test]
    fn products_of_integers_are_exact() {
        let sizes = [
            [1, 1, 1],
            [0, 3, 2],
            [3, 0, 2],
            [3, 2, 0],
            [5, 17, 33],
            [9, 16, 64],
            [STRIP + 3, DEPTH, 47],
            [2 * STRIP + 9, 2 * DEPTH + 5, 31],
            [FEW + 1, 2 * DEPTH + 5, 5],
            // More columns than one group has.
            [3, DEPTH + 1, 1100],
        ];
        for [rows, depth, columns] in sizes {
            let (a, b) = (integers(rows * depth, 1), integers(depth * columns, 2));
            let bias = integers(columns, 3);
            let left = [Matrix::new(&a, [rows, depth]), Matrix::new(&a, [depth, rows]).transposed()];
            let right = [Matrix::new(&b, [depth, columns]), Matrix::new(&b, [columns, depth]).transposed()];
            for a in left {
                for b in right {
                    for bias in [None, Some(bias.as_slice())] {
                        let size = format!("{rows} x {depth} x {columns}");
                        assert_eq!(product(a, b, bias), expected(&a, &b, bias), "{size}, {a:.0?}, {b:.0?}");
                    }
                }
            }
        }
    }

    #[test]
    fn many_products_are_one_after_the_other() {
        let (rows, depth, columns, count) = (7, 20, 35, 5);
        let (a, b) = (integers(count * rows * depth, 1), integers(count * depth * columns, 2));
        let factors = |i: usize| {
            [
                Matrix::new(&a[i * rows * depth..][..rows * depth], [rows, depth]),
                Matrix::new(&b[i * depth * columns..][..depth * columns], [columns, depth]).transposed(),
            ]
        };
        let each = (0..count).flat_map(|i| {
            let [a, b] = factors(i);
            expected(&a, &b, None)
        });
        assert_eq!(products(count, factors), each.collect::<Vec<f32>>());
        assert!(products(0, factors).is_empty());
    }

    #[test]
    #[should_panic(expected = "columns of the left factor")]
    fn factors_must_fit() {
        product(Matrix::new(&[0.0; 6], [2, 3]), Matrix::new(&[0.0; 6], [2, 3]), None);
    }

    #[test]
    #[should_panic(expected = "values of the bias")]
    fn the_bias_must_fit() {
        product(Matrix::new(&[0.0; 6], [2, 3]), Matrix::new(&[0.0; 6], [3, 2]), Some(&[0.0; 3]));
    }
}
