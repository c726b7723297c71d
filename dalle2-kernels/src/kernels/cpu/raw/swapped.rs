//! Copies in another order, into new memory without clearing it first.

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::super::parallel::min_len;
use super::square::{SQUARE, transpose_new};

/// `[outer, rows, columns, inner]` as `[outer, columns, rows, inner]`.
///
/// # Panics
/// If the values are not as many as the size says.
pub fn swapped(from: &[f32], [outer, rows, columns, inner]: [usize; 4]) -> Vec<f32> {
    let product = |sizes: &[usize]| sizes.iter().try_fold(1usize, |product, size| product.checked_mul(*size));
    assert_eq!(Some(from.len()), product(&[outer, rows, columns, inner]), "swapped: values of the size");
    let of_outer = rows * columns * inner;
    let mut to = Vec::with_capacity(from.len());
    if from.is_empty() {
        return to;
    }
    // A task writes some columns.
    let at_once = if inner == 1 { SQUARE } else { 1 };
    let tasks_of_outer = columns.div_ceil(at_once);
    let tasks: Vec<&mut [MaybeUninit<f32>]> = to.spare_capacity_mut()[..from.len()]
        .chunks_mut(of_outer)
        .flat_map(|to| to.chunks_mut(at_once * rows * inner))
        .collect();
    tasks.into_par_iter().enumerate().with_min_len(min_len(from.len())).for_each(|(task, to)| {
        let from = &from[task / tasks_of_outer * of_outer..][..of_outer];
        let column = task % tasks_of_outer * at_once;
        if inner == 1 {
            columns_to_rows(&from[column..], columns, to, rows);
        } else {
            for (row, to) in to.chunks_exact_mut(inner).enumerate() {
                to.write_copy_of_slice(&from[(row * columns + column) * inner..][..inner]);
            }
        }
    });
    // SAFETY: the chunks cover the first `from.len()` values of the capacity, and each was written: `columns_to_rows`
    // writes every value, and the other loop has `rows` pieces of `inner` values, as long as the chunk.
    unsafe { to.set_len(from.len()) };
    to
}

/// Writes the first columns of `from`, whose rows are `stride` apart, as rows of `to`, every value of it.
fn columns_to_rows(from: &[f32], stride: usize, to: &mut [MaybeUninit<f32>], rows: usize) {
    let columns = to.len() / rows;
    assert_eq!(to.len(), rows * columns, "swapped: whole rows");
    let whole = if columns == SQUARE { rows / SQUARE * SQUARE } else { 0 };
    for row in (0..whole).step_by(SQUARE) {
        transpose_new((&from[row * stride..], stride), (&mut to[row..], rows));
    }
    for (column, to) in to.chunks_exact_mut(rows).enumerate() {
        for (row, to) in to.iter_mut().enumerate().skip(whole) {
            to.write(from[row * stride + column]);
        }
    }
}

/// The rows of both, `[rows, a's width + b's width]`.
///
/// # Panics
/// If the values are not whole rows of both, equally many.
pub fn joined(a: &[f32], b: &[f32], rows: usize) -> Vec<f32> {
    let (of_a, of_b) = (a.len() / rows.max(1), b.len() / rows.max(1));
    assert_eq!([a.len(), b.len()], [rows * of_a, rows * of_b], "joined: whole rows");
    let (width, total) = (of_a + of_b, a.len() + b.len());
    let mut to = Vec::with_capacity(total);
    // Pieces of a few rows, or of one: a part of the row of each.
    let tasks: Vec<_> = to.spare_capacity_mut()[..total]
        .chunks_mut(width.max(1))
        .enumerate()
        .flat_map(|(row, to)| {
            let (to_a, to_b) = to.split_at_mut(of_a);
            let (a, b) = (&a[row * of_a..][..of_a], &b[row * of_b..][..of_b]);
            to_a.chunks_mut(PIECE).zip(a.chunks(PIECE)).chain(to_b.chunks_mut(PIECE).zip(b.chunks(PIECE)))
        })
        .collect();
    tasks.into_par_iter().with_min_len(min_len(total)).for_each(|(to, from)| {
        to.write_copy_of_slice(from);
    });
    // SAFETY: the rows cover the first `total` values of the capacity, their pieces the rows, and each was written.
    unsafe { to.set_len(total) };
    to
}

/// These columns of all rows.
///
/// # Panics
/// If the values are not whole rows, or a row has fewer columns.
pub fn columns(from: &[f32], rows: usize, columns: Range<usize>) -> Vec<f32> {
    let (width, total) = (from.len() / rows.max(1), rows * columns.len());
    assert_eq!(from.len(), rows * width, "columns: whole rows");
    assert!(columns.end <= width, "columns: of a row");
    let mut to = Vec::with_capacity(total);
    let tasks: Vec<_> = to.spare_capacity_mut()[..total]
        .chunks_mut(columns.len().max(1))
        .enumerate()
        .flat_map(|(row, to)| {
            let from = &from[row * width..][columns.clone()];
            to.chunks_mut(PIECE).zip(from.chunks(PIECE))
        })
        .collect();
    tasks.into_par_iter().with_min_len(min_len(total)).for_each(|(to, from)| {
        to.write_copy_of_slice(from);
    });
    // SAFETY: the rows cover the first `total` values of the capacity, their pieces the rows, and each was written.
    unsafe { to.set_len(total) };
    to
}

/// Values that a task copies at most.
const PIECE: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::{columns, joined, swapped};

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
                        let to = swapped(&from, [outer, rows, columns, inner]);
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
    fn rows_are_joined_and_parted() {
        for (rows, of_a, of_b) in
            [(0, 0, 0), (1, 3, 0), (1, 0, 3), (2, 0, 0), (2, 5, 7), (3, 70_000, 1), (50, 900, 800)]
        {
            let (a, b) = (numbers(rows * of_a), numbers(rows * of_b));
            let mut expected = Vec::new();
            for row in 0..rows {
                expected.extend_from_slice(&a[row * of_a..][..of_a]);
                expected.extend_from_slice(&b[row * of_b..][..of_b]);
            }
            assert_eq!(joined(&a, &b, rows), expected, "{rows} rows of {of_a} and {of_b}");
            assert_eq!(columns(&expected, rows, 0..of_a), a);
            assert_eq!(columns(&expected, rows, of_a..of_a + of_b), b);
        }
    }

    #[test]
    #[should_panic(expected = "values of the size")]
    fn a_size_beyond_all_numbers_is_refused() {
        swapped(&[0.0; 4], [1, 1, 4, (1 << (usize::BITS - 2)) + 1]);
    }

    #[test]
    #[should_panic(expected = "whole rows")]
    fn half_a_row_is_refused() {
        joined(&[0.0; 5], &[0.0; 4], 2);
    }
}
