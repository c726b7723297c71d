//! Permuted, concatenated and sliced copies, in memory that is not zeroed first.

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::super::parallel::min_len;
use super::transpose::{BLOCK_SIDE, transpose_uninit};

/// `[outer, rows, columns, inner]` as `[outer, columns, rows, inner]`.
///
/// # Panics
/// If the length is not the product of the sizes.
pub(crate) fn swap_middle(from: &[f32], [outer, rows, columns, inner]: [usize; 4]) -> Vec<f32> {
    let product = |sizes: &[usize]| sizes.iter().try_fold(1usize, |product, size| product.checked_mul(*size));
    let expected = product(&[outer, rows, columns, inner]);
    assert_eq!(Some(from.len()), expected, "swap_middle: length differs from the product of the sizes");
    let mut to = Vec::with_capacity(from.len());
    if from.is_empty() {
        return to;
    }
    let outer_len = rows * columns * inner;
    // A task writes `task_columns` columns.
    let task_columns = if inner == 1 { BLOCK_SIDE } else { 1 };
    let tasks_of_outer = columns.div_ceil(task_columns);
    let tasks: Vec<&mut [MaybeUninit<f32>]> = to.spare_capacity_mut()[..from.len()]
        .chunks_mut(outer_len)
        .flat_map(|to| to.chunks_mut(task_columns * rows * inner))
        .collect();
    tasks.into_par_iter().enumerate().with_min_len(min_len(from.len())).for_each(|(task, to)| {
        let from = &from[task / tasks_of_outer * outer_len..][..outer_len];
        let column = task % tasks_of_outer * task_columns;
        if inner == 1 {
            columns_to_rows(&from[column..], columns, to, rows);
        } else {
            for (row, to) in to.chunks_exact_mut(inner).enumerate() {
                to.write_copy_of_slice(&from[(row * columns + column) * inner..][..inner]);
            }
        }
    });
    // SAFETY: the chunks cover the first `from.len()` elements of the capacity, and each was written: `columns_to_rows`
    // writes every element, and the other loop writes `rows` slices of `inner` elements, the length of the chunk.
    unsafe { to.set_len(from.len()) };
    to
}

/// Writes the first columns of `from`, whose rows are `stride` apart, as the rows of `to`, and fills `to`.
fn columns_to_rows(from: &[f32], stride: usize, to: &mut [MaybeUninit<f32>], rows: usize) {
    let columns = to.len() / rows;
    assert_eq!(to.len(), rows * columns, "swap_middle: full rows");
    let full = if columns == BLOCK_SIDE { rows / BLOCK_SIDE * BLOCK_SIDE } else { 0 };
    for row in (0..full).step_by(BLOCK_SIDE) {
        transpose_uninit((&from[row * stride..], stride), (&mut to[row..], rows));
    }
    for (column, to) in to.chunks_exact_mut(rows).enumerate() {
        for (row, to) in to.iter_mut().enumerate().skip(full) {
            to.write(from[row * stride + column]);
        }
    }
}

/// Concatenates two matrices of `rows` rows along their columns.
///
/// # Panics
/// If a length is not a multiple of `rows`.
pub(crate) fn concat(a: &[f32], b: &[f32], rows: usize) -> Vec<f32> {
    let (width_a, width_b) = (a.len() / rows.max(1), b.len() / rows.max(1));
    assert_eq!([a.len(), b.len()], [rows * width_a, rows * width_b], "concat: full rows");
    let (width, total) = (width_a + width_b, a.len() + b.len());
    let mut to = Vec::with_capacity(total);
    // Long rows are split, so that tasks are of similar size.
    let tasks: Vec<_> = to.spare_capacity_mut()[..total]
        .chunks_mut(width.max(1))
        .enumerate()
        .flat_map(|(row, to)| {
            let (to_a, to_b) = to.split_at_mut(width_a);
            let (a, b) = (&a[row * width_a..][..width_a], &b[row * width_b..][..width_b]);
            to_a.chunks_mut(MAX_TASK_LEN)
                .zip(a.chunks(MAX_TASK_LEN))
                .chain(to_b.chunks_mut(MAX_TASK_LEN).zip(b.chunks(MAX_TASK_LEN)))
        })
        .collect();
    tasks.into_par_iter().with_min_len(min_len(total)).for_each(|(to, from)| {
        to.write_copy_of_slice(from);
    });
    // SAFETY: the tasks cover the first `total` elements of the capacity, and each was written.
    unsafe { to.set_len(total) };
    to
}

/// Copies a range of columns of a matrix of `rows` rows.
///
/// # Panics
/// If the length is not a multiple of `rows`, or the range exceeds the columns.
pub(crate) fn columns(from: &[f32], rows: usize, columns: Range<usize>) -> Vec<f32> {
    let (width, total) = (from.len() / rows.max(1), rows * columns.len());
    assert_eq!(from.len(), rows * width, "columns: full rows");
    assert!(columns.end <= width, "columns: range exceeds the row");
    let mut to = Vec::with_capacity(total);
    let tasks: Vec<_> = to.spare_capacity_mut()[..total]
        .chunks_mut(columns.len().max(1))
        .enumerate()
        .flat_map(|(row, to)| {
            let from = &from[row * width..][columns.clone()];
            to.chunks_mut(MAX_TASK_LEN).zip(from.chunks(MAX_TASK_LEN))
        })
        .collect();
    tasks.into_par_iter().with_min_len(min_len(total)).for_each(|(to, from)| {
        to.write_copy_of_slice(from);
    });
    // SAFETY: the tasks cover the first `total` elements of the capacity, and each was written.
    unsafe { to.set_len(total) };
    to
}

/// Maximum number of elements per task, tuned with `cargo bench -p dalle2-kernels --bench ops`.
const MAX_TASK_LEN: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::{columns, concat, swap_middle};

    fn numbers(n: usize) -> Vec<f32> {
        (0..n).map(|i| i as f32).collect()
    }

    #[test]
    fn axes_are_swapped_at_any_size() {
        for outer in [0, 1, 3] {
            for rows in [1, 2, 15, 16, 17, 64, 70] {
                for columns in [1, 3, 16, 31, 48, 130] {
                    for inner in [1, 2, 5, 32] {
                        let from = numbers(outer * rows * columns * inner);
                        let to = swap_middle(&from, [outer, rows, columns, inner]);
                        let expected: Vec<f32> = (0..outer)
                            .flat_map(|o| (0..columns).map(move |c| (o, c)))
                            .flat_map(|(o, c)| (0..rows).map(move |r| (o, c, r)))
                            .flat_map(|(o, c, r)| (0..inner).map(move |i| ((o * rows + r) * columns + c) * inner + i))
                            .map(|i| i as f32)
                            .collect();
                        assert_eq!(to, expected, "{outer} x {rows} x {columns} x {inner}");
                    }
                }
            }
        }
    }

    #[test]
    fn rows_are_concatenated_and_sliced() {
        for (rows, width_a, width_b) in
            [(0, 0, 0), (1, 3, 0), (1, 0, 3), (2, 0, 0), (2, 5, 7), (3, 70_000, 1), (50, 900, 800)]
        {
            let (a, b) = (numbers(rows * width_a), numbers(rows * width_b));
            let mut expected = Vec::new();
            for row in 0..rows {
                expected.extend_from_slice(&a[row * width_a..][..width_a]);
                expected.extend_from_slice(&b[row * width_b..][..width_b]);
            }
            assert_eq!(concat(&a, &b, rows), expected, "{rows} rows of {width_a} and {width_b}");
            assert_eq!(columns(&expected, rows, 0..width_a), a);
            assert_eq!(columns(&expected, rows, width_a..width_a + width_b), b);
        }
    }

    #[test]
    #[should_panic(expected = "length differs")]
    fn a_size_that_overflows_is_refused() {
        swap_middle(&[0.0; 4], [1, 1, 4, (1 << (usize::BITS - 2)) + 1]);
    }

    #[test]
    #[should_panic(expected = "full rows")]
    fn a_partial_row_is_refused() {
        concat(&[0.0; 5], &[0.0; 4], 2);
    }
}
