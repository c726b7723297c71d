//! Products of matrices by the crate `gemm`, which Burn uses as well, written to new memory without clearing it first
//! and without a copy afterwards.
//!
//! Threads share a product by pieces, of which each is a call of `gemm` on one thread: that takes up to a fifth less time
//! than a call on all threads, which packs a part of the factors on one of them while the others wait.

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::super::panels::Matrix;

/// Multiplications from which a product is worth several threads.
const LARGE: usize = 1 << 23;
/// What rows and columns of a piece are multiples of, but for the last: tiles of `gemm` have six rows, and columns in
/// vectors, up to sixty-four.
const STEPS: [usize; 2] = [6, 32];
/// Multiplications that take as long as to read and pack a value of a factor.
const OF_A_VALUE: usize = 32;

/// What is added to a product.
#[derive(Debug, Clone, Copy)]
pub enum Bias<'a> {
    /// Nothing.
    None,
    /// To each row a number of its own.
    OfRows(&'a [f32]),
    /// To each column a number of its own.
    OfColumns(&'a [f32]),
}

impl Bias<'_> {
    /// Whether there are as many numbers as rows or columns.
    fn fits(&self, rows: usize, columns: usize) -> bool {
        match self {
            Self::None => true,
            Self::OfRows(bias) => bias.len() == rows,
            Self::OfColumns(bias) => bias.len() == columns,
        }
    }

    /// Writes what is to be added to some values of a row.
    fn write(&self, row: usize, columns: &Range<usize>, c: &mut [MaybeUninit<f32>]) {
        match self {
            Self::None => {}
            Self::OfRows(bias) => c.fill(MaybeUninit::new(bias[row])),
            Self::OfColumns(bias) => {
                c.write_copy_of_slice(&bias[columns.clone()]);
            }
        }
    }

    /// Adds it to some values of a row.
    fn add(&self, row: usize, columns: &Range<usize>, c: &mut [f32]) {
        match self {
            Self::None => {}
            Self::OfRows(bias) => c.iter_mut().for_each(|value| *value += bias[row]),
            Self::OfColumns(bias) => {
                c.iter_mut().zip(&bias[columns.clone()]).for_each(|(value, bias)| *value += bias);
            }
        }
    }
}

/// `a · b + bias`.
///
/// # Panics
/// If the factors do not fit each other, or the bias not the result.
pub fn product(a: Matrix<'_>, b: Matrix<'_>, bias: Bias<'_>) -> Vec<f32> {
    products(1, |_| [a, b], bias)
}

/// `a(i) · b(i) + bias` for so many i, one after the other, all of the same size. A large one is worked on by all
/// threads, small ones by one thread each.
///
/// # Panics
/// If the factors do not fit each other or the bias not the product, or the products are not all of a size.
pub fn products<'a>(count: usize, factors: impl Fn(usize) -> [Matrix<'a>; 2] + Sync, bias: Bias<'_>) -> Vec<f32> {
    let mut c = Vec::new();
    if count == 0 {
        return c;
    }
    let [a, b] = factors(0);
    let (of_one, (in_turn, threads)) = (a.size()[0] * b.size()[1], sharing(&a, &b));
    c.reserve_exact(count * of_one);
    let tasks = c.spare_capacity_mut()[..count * of_one].par_chunks_mut(of_one.max(1)).enumerate();
    tasks.with_min_len(in_turn).for_each(|(i, c)| {
        let [a, b] = factors(i);
        fill(&a, &b, bias, c, threads);
    });
    // SAFETY: the chunks cover all of them, or there are none, and `fill` has written every chunk.
    unsafe { c.set_len(count * of_one) };
    c
}

/// Adds [`products`] to what is there.
///
/// # Panics
/// As [`products`], and if there are not as many values.
pub fn add_products<'a>(
    count: usize,
    factors: impl Fn(usize) -> [Matrix<'a>; 2] + Sync,
    bias: Bias<'_>,
    c: &mut [f32],
) {
    if count == 0 || c.is_empty() {
        return;
    }
    let [a, b] = factors(0);
    let (of_one, (in_turn, threads)) = (a.size()[0] * b.size()[1], sharing(&a, &b));
    assert_eq!(c.len(), count * of_one, "product: values of the result");
    c.par_chunks_mut(of_one).enumerate().with_min_len(in_turn).for_each(|(i, c)| {
        let [a, b] = factors(i);
        let size = fitting(&a, &b, bias, c.len());
        // SAFETY: there are as many values as `fitting` has made sure of, all of them written.
        unsafe { multiply([&a, &b], size, Start { values: c.as_mut_ptr(), written: true, bias }, threads) };
    });
}

/// How many products of this size are worked on in turn by one task at least, and the threads of each.
fn sharing(a: &Matrix<'_>, b: &Matrix<'_>) -> (usize, usize) {
    let ([rows, depth], columns) = (a.size(), b.size()[1]);
    match rows * depth * columns < LARGE {
        true => (1, 1),
        false => (usize::MAX, rayon::current_num_threads()),
    }
}

/// Rows and columns of the product.
///
/// # Panics
/// If the factors do not fit each other, or the bias or so many values not the product.
fn fitting(a: &Matrix<'_>, b: &Matrix<'_>, bias: Bias<'_>, values: usize) -> [usize; 2] {
    let ([rows, depth], [inner, columns]) = (a.size(), b.size());
    assert_eq!(depth, inner, "product: columns of the left factor and rows of the right one");
    assert_eq!(values, rows * columns, "product: values of the result");
    assert!(bias.fits(rows, columns), "product: values of the bias");
    [rows, columns]
}

/// Writes every value of `a · b + bias` to `c`.
///
/// # Panics
/// If the factors do not fit each other, or `c` and the bias not the product.
fn fill(a: &Matrix<'_>, b: &Matrix<'_>, bias: Bias<'_>, c: &mut [MaybeUninit<f32>], threads: usize) {
    let size = fitting(a, b, bias, c.len());
    // SAFETY: there are as many values as `fitting` has made sure of. That they are not written is said.
    unsafe { multiply([a, b], size, Start { values: c.as_mut_ptr().cast(), written: false, bias }, threads) };
}

/// Rows and columns of the pieces of a product, at most one for each thread. Every piece reads its rows of one factor and
/// its columns of the other: of pieces that are as large as each other, the squarest take the least time.
fn pieces([rows, columns]: [usize; 2], threads: usize) -> [usize; 2] {
    let size = |down: usize| {
        let of = |length: usize, shares: usize, step: usize| {
            length.div_ceil(shares).next_multiple_of(step).min(length).max(1)
        };
        [of(rows, down, STEPS[0]), of(columns, threads / down, STEPS[1])]
    };
    let time = |[rows, columns]: &[usize; 2]| rows * columns + OF_A_VALUE * (rows + columns);
    (1..=threads).map(size).min_by_key(time).unwrap_or([rows, columns])
}

/// The values of a product before it.
#[derive(Clone, Copy)]
struct Start<'a> {
    values: *mut f32,
    /// Whether there are any, to which the product is added.
    written: bool,
    /// What is added.
    bias: Bias<'a>,
}

// SAFETY: a pointer to values of a type that any thread may write; who may use it, and for what, `multiply` asks for.
unsafe impl Send for Start<'_> {}
// SAFETY: as above.
unsafe impl Sync for Start<'_> {}

impl Start<'_> {
    /// Writes or adds the bias to a piece of a matrix with so many columns, and says whether a product is to be added to
    /// what is there now.
    ///
    /// # Safety
    /// The values of the piece must be valid for writing, those that are written also for reading, and nobody else may
    /// use them meanwhile.
    unsafe fn prepare(&self, [rows, columns]: [&Range<usize>; 2], stride: usize) -> bool {
        if matches!(self.bias, Bias::None) {
            return self.written;
        }
        for row in rows.clone() {
            // SAFETY: these values are a row of the piece.
            unsafe {
                let place = self.values.add(row * stride + columns.start);
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

/// Writes `a · b` and the bias, or adds them where something is written.
///
/// # Safety
/// The factors must fit each other, and the bias the product; the values must be valid for writing `rows · columns` of
/// them, those of the product, and for reading them if they are written.
unsafe fn multiply(factors: [&Matrix<'_>; 2], [rows, columns]: [usize; 2], start: Start<'_>, threads: usize) {
    if rows == 0 || columns == 0 {
        return;
    }
    let [height, width] = pieces([rows, columns], threads);
    let [down, across] = [rows.div_ceil(height), columns.div_ceil(width)];
    let piece = |i: usize| {
        let part = |i: usize, length: usize, end: usize| i * length..((i + 1) * length).min(end);
        let rows = part(i / across, height, rows);
        let columns_of = part(i % across, width, columns);
        // SAFETY: no two pieces have a value in common; the rest is what the caller guarantees.
        unsafe {
            let adds = start.prepare([&rows, &columns_of], columns);
            multiply_piece(factors, [rows, columns_of], (start.values, columns), adds);
        }
    };
    (0..down * across).into_par_iter().with_max_len(1).for_each(piece);
}

/// Writes some rows and columns of `a · b` to those of `c`, which has so many columns, or adds them.
///
/// # Safety
/// The factors must fit each other, and have these rows and columns; these of `c` must be valid for writing, and for
/// reading with `adds`.
unsafe fn multiply_piece(
    [a, b]: [&Matrix<'_>; 2],
    [rows, columns]: [Range<usize>; 2],
    (c, stride): (*mut f32, usize),
    adds: bool,
) {
    let depth = a.size()[1];
    // Values from one row to the next, and from one column to the next.
    let strides = |matrix: &Matrix<'_>| {
        let (values, stride) = matrix.in_memory();
        let [of_rows, of_columns] = if matrix.is_transposed() { [1, stride] } else { [stride, 1] };
        (values.as_ptr(), of_rows, of_columns)
    };
    let ((a, a_rows, a_columns), (b, b_rows, b_columns)) = (strides(a), strides(b));
    // SAFETY: a `Matrix` has as many values as its size says, and lies with these strides; without any there is nothing to
    // read. Of `c` it is what the caller guarantees. No conjugates; 1 for the product and, with `adds`, for what is there.
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
