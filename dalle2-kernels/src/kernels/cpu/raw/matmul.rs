//! Matrix products by the crate `gemm`, which Burn uses as well, written directly into memory that is not zeroed first.
//!
//! The result is divided into one block per thread, each computed by a single-threaded call of `gemm`. That takes up to a
//! fifth less time than a multi-threaded call, which packs parts of the factors on one thread while the others wait.

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::super::panels::Matrix;

/// Multiply-adds from which a product is divided between threads, tuned with `cargo bench -p dalle2-kernels --bench ops`.
const MIN_PARALLEL_MACS: usize = 1 << 23;
/// Rows and columns of a block are multiples of these, except for the last block: the micro-kernel of `gemm` has 6 rows
/// and up to 64 columns.
const BLOCK_MULTIPLES: [usize; 2] = [6, 32];
/// Cost of reading and packing one element of a factor, in multiply-adds, fitted to `cargo xtask peer`.
const PACK_COST: usize = 32;

/// The bias of a product.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bias<'a> {
    /// No bias.
    None,
    /// One element per row.
    PerRow(&'a [f32]),
    /// One element per column.
    PerColumn(&'a [f32]),
}

impl Bias<'_> {
    /// Whether its length matches the rows or columns.
    fn fits(&self, rows: usize, columns: usize) -> bool {
        match self {
            Self::None => true,
            Self::PerRow(bias) => bias.len() == rows,
            Self::PerColumn(bias) => bias.len() == columns,
        }
    }

    /// Writes the bias of a range of a row.
    fn write(&self, row: usize, columns: &Range<usize>, c: &mut [MaybeUninit<f32>]) {
        match self {
            Self::None => {}
            Self::PerRow(bias) => c.fill(MaybeUninit::new(bias[row])),
            Self::PerColumn(bias) => {
                c.write_copy_of_slice(&bias[columns.clone()]);
            }
        }
    }

    /// Adds the bias to a range of a row.
    fn add(&self, row: usize, columns: &Range<usize>, c: &mut [f32]) {
        match self {
            Self::None => {}
            Self::PerRow(bias) => c.iter_mut().for_each(|value| *value += bias[row]),
            Self::PerColumn(bias) => {
                c.iter_mut().zip(&bias[columns.clone()]).for_each(|(value, bias)| *value += bias);
            }
        }
    }
}

/// `a · b + bias`.
///
/// # Panics
/// If the sizes of the factors and the bias are incompatible.
pub(crate) fn product(a: Matrix<'_>, b: Matrix<'_>, bias: Bias<'_>) -> Vec<f32> {
    products(1, |_| [a, b], bias)
}

/// `a(i) · b(i) + bias` for `i < count`, one after the other in memory, all of the same size. A large product is computed
/// by all threads, small ones by one thread each.
///
/// # Panics
/// If the sizes of the factors and the bias are incompatible, or differ between products.
pub(crate) fn products<'a>(
    count: usize,
    factors: impl Fn(usize) -> [Matrix<'a>; 2] + Sync,
    bias: Bias<'_>,
) -> Vec<f32> {
    let mut c = Vec::new();
    if count == 0 {
        return c;
    }
    let [a, b] = factors(0);
    let (product_len, (min_len, threads)) = (result_len(1, &a, &b), parallelism(&a, &b));
    let total = result_len(count, &a, &b);
    c.reserve_exact(total);
    let tasks = c.spare_capacity_mut()[..total].par_chunks_mut(product_len.max(1)).enumerate();
    tasks.with_min_len(min_len).for_each(|(i, c)| {
        let [a, b] = factors(i);
        fill(&a, &b, bias, c, threads);
    });
    // SAFETY: the chunks cover the first `total` elements, and `fill` has written every chunk.
    unsafe { c.set_len(total) };
    c
}

/// Adds [`products`] to `c`.
///
/// # Panics
/// As [`products`], and if the length of `c` differs.
pub(crate) fn add_products<'a>(
    count: usize,
    factors: impl Fn(usize) -> [Matrix<'a>; 2] + Sync,
    bias: Bias<'_>,
    c: &mut [f32],
) {
    if count == 0 || c.is_empty() {
        return;
    }
    let [a, b] = factors(0);
    let (product_len, (min_len, threads)) = (result_len(1, &a, &b), parallelism(&a, &b));
    assert_eq!(c.len(), result_len(count, &a, &b), "product: length of the result");
    c.par_chunks_mut(product_len).enumerate().with_min_len(min_len).for_each(|(i, c)| {
        let [a, b] = factors(i);
        let size = checked_size(&a, &b, bias, c.len());
        // SAFETY: `checked_size` has verified the length of `c`, which is initialised.
        unsafe { multiply([&a, &b], size, Output { data: c.as_mut_ptr(), written: true, bias }, threads) };
    });
}

/// Number of elements of `count` results.
///
/// # Panics
/// If it overflows.
fn result_len(count: usize, a: &Matrix<'_>, b: &Matrix<'_>) -> usize {
    let len = a.size()[0].checked_mul(b.size()[1]).and_then(|len| len.checked_mul(count));
    assert!(len.is_some(), "product: the length of {count} results overflows");
    len.unwrap_or_default()
}

/// The minimum number of products per task, and the number of threads per product.
fn parallelism(a: &Matrix<'_>, b: &Matrix<'_>) -> (usize, usize) {
    let ([rows, depth], columns) = (a.size(), b.size()[1]);
    let macs = rows.saturating_mul(depth).saturating_mul(columns);
    if macs < MIN_PARALLEL_MACS { (1, 1) } else { (usize::MAX, rayon::current_num_threads()) }
}

/// Returns rows and columns of the product.
///
/// # Panics
/// If the sizes of the factors, the bias and the result (`len` elements) are incompatible.
fn checked_size(a: &Matrix<'_>, b: &Matrix<'_>, bias: Bias<'_>, len: usize) -> [usize; 2] {
    let ([rows, depth], [inner, columns]) = (a.size(), b.size());
    assert_eq!(depth, inner, "product: columns of the left factor and rows of the right one");
    assert_eq!(Some(len), rows.checked_mul(columns), "product: length of the result");
    assert!(bias.fits(rows, columns), "product: length of the bias");
    [rows, columns]
}

/// Writes every element of `a · b + bias` to `c`.
///
/// # Panics
/// If the sizes are incompatible.
fn fill(a: &Matrix<'_>, b: &Matrix<'_>, bias: Bias<'_>, c: &mut [MaybeUninit<f32>], threads: usize) {
    let size = checked_size(a, b, bias, c.len());
    // SAFETY: `checked_size` has verified the length of `c`; `written: false` marks it as uninitialised.
    unsafe { multiply([a, b], size, Output { data: c.as_mut_ptr().cast(), written: false, bias }, threads) };
}

/// Rows and columns of the blocks of a product, at most one block per thread. A block reads its rows of one factor and its
/// columns of the other, so that square blocks cost least.
fn block_size([rows, columns]: [usize; 2], threads: usize) -> [usize; 2] {
    let size = |down: usize| {
        let of = |length: usize, shares: usize, step: usize| {
            length.div_ceil(shares).next_multiple_of(step).min(length).max(1)
        };
        [of(rows, down, BLOCK_MULTIPLES[0]), of(columns, threads / down, BLOCK_MULTIPLES[1])]
    };
    let time = |[rows, columns]: &[usize; 2]| rows * columns + PACK_COST * (rows + columns);
    (1..=threads).map(size).min_by_key(time).unwrap_or([rows, columns])
}

/// The memory of a product and its initial content.
#[derive(Clone, Copy)]
struct Output<'a> {
    data: *mut f32,
    /// Whether it is initialised; the product is then added.
    written: bool,
    /// The bias to add.
    bias: Bias<'a>,
}

// SAFETY: the pointee is `f32`, which any thread may write; `multiply` states the rules of access.
unsafe impl Send for Output<'_> {}
// SAFETY: as above.
unsafe impl Sync for Output<'_> {}

impl Output<'_> {
    /// Writes or adds the bias to a block of a matrix with `stride` columns, and returns whether the product has to be
    /// added to the content.
    ///
    /// # Safety
    /// The elements of the block must be valid for writing, and for reading if initialised, without concurrent access.
    unsafe fn prepare(&self, [rows, columns]: [&Range<usize>; 2], stride: usize) -> bool {
        if matches!(self.bias, Bias::None) {
            return self.written;
        }
        for row in rows.clone() {
            // SAFETY: these elements are a row of the block.
            unsafe {
                let place = self.data.add(row * stride + columns.start);
                if self.written {
                    self.bias.add(row, columns, std::slice::from_raw_parts_mut(place, columns.len()));
                } else {
                    self.bias.write(row, columns, std::slice::from_raw_parts_mut(place.cast(), columns.len()));
                }
            }
        }
        true
    }
}

/// Writes `a · b` plus the bias, or adds it if the memory is initialised.
///
/// # Safety
/// The sizes must be compatible, see `checked_size`. `rows · columns` elements of the output must be valid for writing,
/// and for reading if initialised.
unsafe fn multiply(factors: [&Matrix<'_>; 2], [rows, columns]: [usize; 2], start: Output<'_>, threads: usize) {
    if rows == 0 || columns == 0 {
        return;
    }
    let [height, width] = block_size([rows, columns], threads);
    let [down, across] = [rows.div_ceil(height), columns.div_ceil(width)];
    let piece = |i: usize| {
        let part = |i: usize, length: usize, end: usize| i * length..((i + 1) * length).min(end);
        let rows = part(i / across, height, rows);
        let columns_of = part(i % across, width, columns);
        // SAFETY: blocks are disjoint; the caller guarantees the rest.
        unsafe {
            let adds = start.prepare([&rows, &columns_of], columns);
            multiply_block(factors, [rows, columns_of], (start.data, columns), adds);
        }
    };
    (0..down * across).into_par_iter().with_max_len(1).for_each(piece);
}

/// Writes a block of `a · b` to `c`, whose rows are `stride` apart, or adds it.
///
/// # Safety
/// The sizes must be compatible, and rows and columns in range. The block of `c` must be valid for writing, and for
/// reading with `adds`.
unsafe fn multiply_block(
    [a, b]: [&Matrix<'_>; 2],
    [rows, columns]: [Range<usize>; 2],
    (c, stride): (*mut f32, usize),
    adds: bool,
) {
    let depth = a.size()[1];
    // Elements from one row to the next, and from one column to the next.
    let strides = |matrix: &Matrix<'_>| {
        let (data, stride) = matrix.in_memory();
        let [row_stride, column_stride] = if matrix.is_transposed() { [1, stride] } else { [stride, 1] };
        (data.as_ptr(), row_stride, column_stride)
    };
    let ((a, a_rows, a_columns), (b, b_rows, b_columns)) = (strides(a), strides(b));
    // SAFETY: a `Matrix` holds all elements of its size with these strides, and the caller guarantees `c`. The factors are
    // not conjugated; the scale is 1 for the product and, with `adds`, for the content of `c`.
    unsafe {
        gemm::gemm(
            rows.len(),
            columns.len(),
            depth,
            c.add(rows.start * stride + columns.start),
            1,
            stride as isize,
            adds,
            a.wrapping_add(rows.start * a_rows),
            a_columns as isize,
            a_rows as isize,
            b.wrapping_add(columns.start * b_columns),
            b_columns as isize,
            b_rows as isize,
            if adds { 1.0 } else { 0.0 },
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests;
