//! Products of matrices by the crate `gemm`, which Burn uses as well, written to new memory without clearing it first
//! and without a copy afterwards.

use std::mem::MaybeUninit;

use gemm::Parallelism;
use rayon::prelude::*;

use super::super::panels::Matrix;
use super::super::parallel::WORTH_A_THREAD;

/// Multiplications from which a product is worth several threads.
const LARGE: usize = 1 << 23;

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

    /// Writes what is to be added to some rows, from `first` on, or nothing if there is nothing.
    fn write(&self, first: usize, columns: usize, c: &mut [MaybeUninit<f32>]) {
        for (i, row) in c.chunks_exact_mut(columns).enumerate() {
            match self {
                Self::None => return,
                Self::OfRows(bias) => row.fill(MaybeUninit::new(bias[first + i])),
                Self::OfColumns(bias) => {
                    row.write_copy_of_slice(bias);
                }
            }
        }
    }

    /// Adds it to some rows, from `first` on.
    fn add(&self, first: usize, columns: usize, c: &mut [f32]) {
        for (i, row) in c.chunks_exact_mut(columns).enumerate() {
            match self {
                Self::None => return,
                Self::OfRows(bias) => row.iter_mut().for_each(|value| *value += bias[first + i]),
                Self::OfColumns(bias) => row.iter_mut().zip(*bias).for_each(|(value, bias)| *value += bias),
            }
        }
    }
}

/// `a · b + bias`.
///
/// # Panics
/// If the factors do not fit each other, or the bias not the result.
pub fn product(a: Matrix<'_>, b: Matrix<'_>, bias: Bias<'_>) -> Vec<f32> {
    let size = a.size()[0] * b.size()[1];
    let mut c = Vec::with_capacity(size);
    fill(&a, &b, bias, &mut c.spare_capacity_mut()[..size], Parallelism::Rayon(0));
    // SAFETY: `fill` has written all of them.
    unsafe { c.set_len(size) };
    c
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
    let ([of_one, in_turn], threads) = sharing(factors(0));
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
    let ([of_one, in_turn], threads) = sharing(factors(0));
    assert_eq!(c.len(), count * of_one, "product: values of the result");
    c.par_chunks_mut(of_one).enumerate().with_min_len(in_turn).for_each(|(i, c)| {
        let [a, b] = factors(i);
        let [rows, columns] = fitting(&a, &b, bias, c.len());
        by_rows(c, columns, threads, |first, c| bias.add(first, columns, c));
        // SAFETY: there are `rows · columns` values, as `fitting` has made sure.
        unsafe { multiply(&a, &b, [rows, columns], c.as_mut_ptr(), true, threads) };
    });
}

/// Values of a product, how many are worked on in turn by one task at least, and the threads of each.
fn sharing([a, b]: [Matrix<'_>; 2]) -> ([usize; 2], Parallelism) {
    let ([rows, depth], columns) = (a.size(), b.size()[1]);
    match rows * depth * columns < LARGE {
        true => ([rows * columns, 1], Parallelism::None),
        false => ([rows * columns, usize::MAX], Parallelism::Rayon(0)),
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

/// Calls `f(first row, rows)` on pieces of a matrix.
fn by_rows<T: Send>(c: &mut [T], columns: usize, threads: Parallelism, f: impl Fn(usize, &mut [T]) + Sync + Send) {
    let rows = match threads {
        Parallelism::None => usize::MAX / columns,
        Parallelism::Rayon(_) => WORTH_A_THREAD.div_ceil(columns),
    };
    c.par_chunks_mut(rows * columns).enumerate().for_each(|(i, c)| f(i * rows, c));
}

/// Writes every value of `a · b + bias` to `c`.
///
/// # Panics
/// If the factors do not fit each other, or `c` and the bias not the product.
fn fill(a: &Matrix<'_>, b: &Matrix<'_>, bias: Bias<'_>, c: &mut [MaybeUninit<f32>], threads: Parallelism) {
    let [rows, columns] = fitting(a, b, bias, c.len());
    if c.is_empty() {
        return;
    }
    let adds = !matches!(bias, Bias::None);
    if adds {
        by_rows(c, columns, threads, |first, c| bias.write(first, columns, c));
    } else if a.size()[1] == 0 {
        c.fill(MaybeUninit::new(0.0));
    }
    // SAFETY: there are `rows · columns` values. They are read only if there is a bias, which was written to all of them;
    // and where there is nothing to sum up, zeros were.
    unsafe { multiply(a, b, [rows, columns], c.as_mut_ptr().cast(), adds, threads) };
}

/// Writes `a · b` to `c`, or adds it; without columns of `a` there is nothing to do.
///
/// # Safety
/// The factors must fit each other; `c` must be valid for writing `rows · columns` values, which are those of the product,
/// and for reading them with `adds`.
unsafe fn multiply(
    a: &Matrix<'_>,
    b: &Matrix<'_>,
    [rows, columns]: [usize; 2],
    c: *mut f32,
    adds: bool,
    threads: Parallelism,
) {
    let depth = a.size()[1];
    if depth == 0 {
        return;
    }
    // Values from one row to the next, and from one column to the next.
    let strides = |matrix: &Matrix<'_>| {
        let (values, stride) = matrix.in_memory();
        let stride = stride as isize;
        let [of_rows, of_columns] = if matrix.is_transposed() { [1, stride] } else { [stride, 1] };
        (values.as_ptr(), of_rows, of_columns)
    };
    let ((a, a_rows, a_columns), (b, b_rows, b_columns)) = (strides(a), strides(b));
    // SAFETY: a `Matrix` has as many values as its size says, and lies with these strides; of `c` it is what the caller
    // guarantees. No conjugates, and 1 for both factors.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            depth,
            c,
            1,
            columns as isize,
            adds,
            a,
            a_columns,
            a_rows,
            b,
            b_columns,
            b_rows,
            1.0,
            1.0,
            false,
            false,
            false,
            threads,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::panels::Matrix;
    use super::{Bias, add_products, product, products};

    /// Small integers, whose products and sums are exact.
    fn integers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 13) as f32 - 6.0).collect()
    }

    fn at(matrix: &Matrix<'_>, row: usize, column: usize) -> f32 {
        let (values, stride) = matrix.in_memory();
        values[if matrix.is_transposed() { column * stride + row } else { row * stride + column }]
    }

    fn expected(a: &Matrix<'_>, b: &Matrix<'_>, bias: Bias<'_>) -> Vec<f32> {
        let ([rows, depth], [_, columns]) = (a.size(), b.size());
        let value = |row, column| {
            let bias = match bias {
                Bias::None => 0.0,
                Bias::OfRows(bias) => bias[row],
                Bias::OfColumns(bias) => bias[column],
            };
            (0..depth).map(|k| at(a, row, k) * at(b, k, column)).sum::<f32>() + bias
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
            [131, 384, 47],
            [265, 773, 31],
            [3, 385, 1100],
        ];
        for [rows, depth, columns] in sizes {
            let (a, b) = (integers(rows * depth, 1), integers(depth * columns, 2));
            let (of_rows, of_columns) = (integers(rows, 3), integers(columns, 4));
            let left = [Matrix::new(&a, [rows, depth]), Matrix::new(&a, [depth, rows]).transposed()];
            let right = [Matrix::new(&b, [depth, columns]), Matrix::new(&b, [columns, depth]).transposed()];
            for a in left {
                for b in right {
                    for bias in [Bias::None, Bias::OfRows(&of_rows), Bias::OfColumns(&of_columns)] {
                        let size = format!("{rows} x {depth} x {columns}");
                        let expected = expected(&a, &b, bias);
                        assert_eq!(product(a, b, bias), expected, "{size}, {a:.0?}, {b:.0?}");
                        let before = integers(rows * columns, 5);
                        let mut sum = before.clone();
                        add_products(1, |_| [a, b], bias, &mut sum);
                        let expected: Vec<f32> = expected.iter().zip(before).map(|(a, b)| a + b).collect();
                        assert_eq!(sum, expected, "added, {size}, {a:.0?}, {b:.0?}");
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
            expected(&a, &b, Bias::None)
        });
        assert_eq!(products(count, factors, Bias::None), each.collect::<Vec<f32>>());
        assert!(products(0, factors, Bias::None).is_empty());
        // Large enough for all threads.
        let (a, b) = (integers(2 * 200 * 250, 3), integers(2 * 250 * 200, 4));
        let factors = |i: usize| {
            [Matrix::new(&a[i * 50_000..][..50_000], [200, 250]), Matrix::new(&b[i * 50_000..][..50_000], [250, 200])]
        };
        let bias = Bias::OfRows(&a[..200]);
        let each = (0..2).flat_map(|i| {
            let [a, b] = factors(i);
            expected(&a, &b, bias)
        });
        let each = each.collect::<Vec<f32>>();
        assert_eq!(products(2, factors, bias), each);
        let of_columns = integers(200, 5);
        for bias in [bias, Bias::OfColumns(&of_columns)] {
            let mut sum = integers(2 * 200 * 200, 6);
            let before = sum.clone();
            add_products(2, factors, bias, &mut sum);
            let found: Vec<f32> = sum.iter().zip(before).map(|(sum, before)| sum - before).collect();
            assert_eq!(found, products(2, factors, bias));
        }
    }

    #[test]
    #[should_panic(expected = "columns of the left factor")]
    fn factors_must_fit() {
        product(Matrix::new(&[0.0; 6], [2, 3]), Matrix::new(&[0.0; 6], [2, 3]), Bias::None);
    }

    #[test]
    #[should_panic(expected = "values of the bias")]
    fn the_bias_must_fit() {
        product(Matrix::new(&[0.0; 6], [2, 3]), Matrix::new(&[0.0; 6], [3, 2]), Bias::OfColumns(&[0.0; 3]));
    }
}
