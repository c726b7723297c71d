//! The micro-kernel of matrix products.
//!
//! It reads one operand in panels of [`PANEL`] columns and accumulates a few rows of the result in registers, so that each
//! loaded vector serves several multiply-adds (Goto and van de Geijn 2008, Anatomy of High-Performance Matrix
//! Multiplication, section 5).

use macerator::{Scalar, Simd};

/// Columns of a panel: two of the widest vectors.
pub(crate) const PANEL: usize = 32;
/// Preferred multiple of the number of rows.
pub(crate) const ROWS: usize = 8;

/// Elements of a cache line.
const CACHE_LINE: usize = 16;

/// A row of a panel.
pub(crate) type Row = [f32; PANEL];

/// Writes `a · b` to `c`, or adds it if `accumulate`.
///
/// `a` has `rows` rows of `b.len()` elements, `lda` apart; `c` has `rows` rows of [`PANEL`] elements, `ldc` apart. Only the
/// first `columns` columns of `c` are defined afterwards. With `PREFETCH`, the rows that follow `b` in memory, up to its
/// length plus one, are prefetched for the next product.
///
/// # Panics
/// If a slice is too short, or `columns` exceeds [`PANEL`].
#[inline(always)]
pub(crate) fn product<S: Simd, const PREFETCH: bool>(
    [rows, columns]: [usize; 2],
    (a, lda): (&[f32], usize),
    b: &[Row],
    (c, ldc): (&mut [f32], usize),
    accumulate: bool,
) {
    if rows == 0 {
        return;
    }
    assert!(columns <= PANEL, "product: more columns than in a panel");
    assert!(2 * S::lanes32() <= PANEL, "product: a vector is wider than half a panel");
    assert!(holds_rows(a.len(), rows, lda, b.len()), "product: `a` is too short");
    assert!(holds_rows(c.len(), rows, ldc, PANEL), "product: `c` is too short");
    let mut row = 0;
    while row < rows {
        // 12 rows of two accumulators fit the 32 registers of AVX-512, 4 rows the 16 of AVX2.
        let step = match rows - row {
            12.. if S::lanes32() >= PANEL / 2 => 12,
            8.. if S::lanes32() >= PANEL / 2 => 8,
            4.. => 4,
            2.. => 2,
            _ => 1,
        };
        let operands = Operands { a: &a[row * lda..], lda, b, c: &mut c[row * ldc..], ldc, columns, accumulate };
        // SAFETY: `step <= rows - row`, so the slices hold `step` rows from here on, and a vector is at most half a
        // panel, both as asserted above.
        unsafe {
            match (step, columns <= S::lanes32()) {
                (12, false) => operands.rows::<S, PREFETCH, 12, 2>(),
                (8, false) => operands.rows::<S, PREFETCH, 8, 2>(),
                (4, false) => operands.rows::<S, PREFETCH, 4, 2>(),
                (2, false) => operands.rows::<S, PREFETCH, 2, 2>(),
                (1, false) => operands.rows::<S, PREFETCH, 1, 2>(),
                (12, true) => operands.rows::<S, PREFETCH, 12, 1>(),
                (8, true) => operands.rows::<S, PREFETCH, 8, 1>(),
                (4, true) => operands.rows::<S, PREFETCH, 4, 1>(),
                (2, true) => operands.rows::<S, PREFETCH, 2, 1>(),
                _ => operands.rows::<S, PREFETCH, 1, 1>(),
            }
        }
        row += step;
    }
}

/// Prefetches `count` elements from `first` on into the first-level cache, as far as the slice has them.
#[inline(always)]
pub(crate) fn prefetch(values: &[f32], first: usize, count: usize) {
    for line in (first..values.len().min(first + count)).step_by(CACHE_LINE) {
        prefetch_line(values[line..].as_ptr());
    }
}

/// Prefetches a cache line; invalid addresses are ignored.
#[inline(always)]
fn prefetch_line(line: *const f32) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every x86-64 processor has SSE; prefetching an invalid address is ignored.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// Whether a slice of `len` elements holds `rows` rows of `width` elements, `stride` apart; `rows` is at least 1.
#[inline(always)]
fn holds_rows(len: usize, rows: usize, stride: usize, width: usize) -> bool {
    (rows - 1).checked_mul(stride).and_then(|last| last.checked_add(width)).is_some_and(|needed| needed <= len)
}

struct Operands<'a> {
    a: &'a [f32],
    lda: usize,
    b: &'a [Row],
    c: &'a mut [f32],
    ldc: usize,
    columns: usize,
    accumulate: bool,
}

impl Operands<'_> {
    /// Computes R rows, V vectors at a time.
    ///
    /// # Safety
    /// With R ≥ 1 and K the rows of `b`: `a` must hold `(R − 1) · lda + K` elements and `c` `(R − 1) · ldc + PANEL`; V
    /// vectors must divide a panel, and `columns` must be at most [`PANEL`].
    #[inline(always)]
    unsafe fn rows<S: Simd, const PREFETCH: bool, const R: usize, const V: usize>(self) {
        let Self { lda, ldc, accumulate, .. } = self;
        let (a, b, c) = (self.a.as_ptr(), self.b.as_ptr().cast::<f32>(), self.c.as_mut_ptr());
        let lanes = S::lanes32();
        for first in (0..self.columns).step_by(V * lanes) {
            let mut sums = [[0.0f32.splat::<S>(); V]; R];
            // SAFETY: `first` is a multiple of `V · lanes`, which divides a panel, and less than PANEL, so
            // `first + V · lanes <= PANEL`; the caller guarantees the rest.
            unsafe {
                for k in 0..self.b.len() {
                    let from = b.add(k * PANEL + first);
                    if PREFETCH {
                        let row = b.wrapping_add((self.b.len() + 1 + k) * PANEL);
                        for line in (0..PANEL).step_by(CACHE_LINE) {
                            prefetch_line(row.wrapping_add(line));
                        }
                    }
                    let values: [_; V] = std::array::from_fn(|v| f32::vload_unaligned::<S>(from.add(v * lanes)));
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let factor = (*a.add(r * lda + k)).splat::<S>();
                        for (sum, value) in sums.iter_mut().zip(values) {
                            *sum = factor.mul_add(value, *sum);
                        }
                    }
                }
                for (r, sums) in sums.into_iter().enumerate() {
                    for (v, sum) in sums.into_iter().enumerate() {
                        let to = c.add(r * ldc + first + v * lanes);
                        let sum = if accumulate { sum + f32::vload_unaligned::<S>(to) } else { sum };
                        f32::vstore_unaligned::<S>(to, sum);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use macerator::{Simd, WithSimd};

    use super::super::super::parallel::vectorized;
    use super::{PANEL, Row, product};

    struct Product<'a> {
        size: [usize; 2],
        a: &'a [f32],
        lda: usize,
        b: &'a [Row],
        c: &'a mut [f32],
        ldc: usize,
        accumulate: bool,
    }

    impl WithSimd for Product<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self) {
            let Self { size, a, lda, b, c, ldc, accumulate } = self;
            // Prefetching must not change results, even at the end of the slice.
            match size[0] % 2 {
                0 => product::<S, true>(size, (a, lda), b, (c, ldc), accumulate),
                _ => product::<S, false>(size, (a, lda), b, (c, ldc), accumulate),
            }
        }
    }

    /// Small integers, whose products and sums are exact.
    fn integers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 13) as f32 - 6.0).collect()
    }

    #[test]
    fn products_of_integers_are_exact() {
        for rows in [0, 1, 2, 3, 7, 8, 9, 12, 15, 16, 20, 24, 31] {
            for depth in [0, 1, 2, 17, 64] {
                for columns in [0, 1, 15, 16, 17, PANEL] {
                    for accumulate in [false, true] {
                        let (lda, ldc) = (depth + 3, PANEL + 5);
                        // The minimum lengths: any access beyond a row would be out of bounds.
                        let a = integers((rows.max(1) - 1) * lda + depth, 1);
                        let b: Vec<Row> = integers(depth * PANEL, 2).as_chunks::<PANEL>().0.to_vec();
                        let before = integers((rows.max(1) - 1) * ldc + PANEL, 3);
                        let mut c = before.clone();
                        let size = [rows, columns];
                        vectorized(Product { size, a: &a, lda, b: &b, c: &mut c, ldc, accumulate });
                        for row in 0..rows {
                            for column in 0..columns {
                                let column_of_b = b.iter().map(|row| row[column]);
                                let product: f32 = column_of_b.enumerate().map(|(k, b)| a[row * lda + k] * b).sum();
                                let at = row * ldc + column;
                                let expected = if accumulate { before[at] + product } else { product };
                                assert_eq!(c[at], expected, "{rows} x {depth} x {columns}, row {row}, column {column}");
                            }
                        }
                        for (at, (actual, before)) in c.iter().zip(&before).enumerate() {
                            assert!(at % ldc < PANEL || actual == before, "wrote between the rows, at {at}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "`a` is too short")]
    fn a_short_operand_is_refused() {
        let size = [2, PANEL];
        vectorized(Product {
            size,
            a: &[0.0; 7],
            lda: 4,
            b: &[[0.0; PANEL]; 4],
            c: &mut [0.0; 2 * PANEL],
            ldc: PANEL,
            accumulate: false,
        });
    }

    #[test]
    #[should_panic(expected = "`c` is too short")]
    fn a_short_result_is_refused() {
        let size = [2, PANEL];
        vectorized(Product {
            size,
            a: &[0.0; 8],
            lda: 4,
            b: &[[0.0; PANEL]; 4],
            c: &mut [0.0; 2 * PANEL - 1],
            ldc: PANEL,
            accumulate: false,
        });
    }
}
