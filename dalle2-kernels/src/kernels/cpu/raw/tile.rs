//! The register tile of a matrix product.
//!
//! A tile reads one operand in panels of [`PANEL`] columns and keeps a few rows of the result in registers, so that each
//! loaded value meets many multiply-adds (Goto and van de Geijn 2008, Anatomy of High-Performance Matrix
//! Multiplication, section 5).

use macerator::{Scalar, Simd};

/// Columns of a panel: two of the widest vectors.
pub const PANEL: usize = 32;
/// What rows are best a multiple of.
pub const ROWS: usize = 8;

/// Values of a line of the cache.
const LINE: usize = 16;

/// A row of a panel.
pub type Row = [f32; PANEL];

/// Writes `a · b` into the rows of `c`, or adds it to them.
///
/// `a` has `rows` rows of `b.len()` values, `lda` apart; `c` has as many rows of [`PANEL`] values, `ldc` apart. Only the
/// first `columns` of the panel are wanted: the others may be computed or left as they are. With `AHEAD`, as many rows
/// that follow those of `b` and one more are fetched into the first cache, for the next product.
///
/// # Panics
/// If a slice is too short for its rows, or a panel for the columns.
#[inline(always)]
pub fn product<S: Simd, const AHEAD: bool>(
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
    assert!(a.len() >= (rows - 1) * lda + b.len(), "product: `a` is too short");
    assert!(c.len() >= (rows - 1) * ldc + PANEL, "product: `c` is too short");
    let mut row = 0;
    while row < rows {
        // As many rows of sums as the vector registers hold: thirty-two where vectors are this wide, or sixteen.
        let step = match rows - row {
            12.. if S::lanes32() >= PANEL / 2 => 12,
            8.. if S::lanes32() >= PANEL / 2 => 8,
            4.. => 4,
            2.. => 2,
            _ => 1,
        };
        let operands = Operands { a: &a[row * lda..], lda, b, c: &mut c[row * ldc..], ldc, columns, accumulate };
        // SAFETY: `step` is at most `rows - row`, so the slices hold that many rows from here on, as asserted above; a
        // single vector is at most half a panel.
        unsafe {
            match (step, columns <= S::lanes32()) {
                (12, false) => operands.rows::<S, AHEAD, 12, 2>(),
                (8, false) => operands.rows::<S, AHEAD, 8, 2>(),
                (4, false) => operands.rows::<S, AHEAD, 4, 2>(),
                (2, false) => operands.rows::<S, AHEAD, 2, 2>(),
                (1, false) => operands.rows::<S, AHEAD, 1, 2>(),
                (12, true) => operands.rows::<S, AHEAD, 12, 1>(),
                (8, true) => operands.rows::<S, AHEAD, 8, 1>(),
                (4, true) => operands.rows::<S, AHEAD, 4, 1>(),
                (2, true) => operands.rows::<S, AHEAD, 2, 1>(),
                _ => operands.rows::<S, AHEAD, 1, 1>(),
            }
        }
        row += step;
    }
}

/// Asks for some of these values to be brought into the first cache, as far as there are any.
#[inline(always)]
pub fn fetch(values: &[f32], first: usize, count: usize) {
    for line in (first..values.len().min(first + count)).step_by(LINE) {
        fetch_line(values[line..].as_ptr());
    }
}

/// Asks for a line to be brought into the first cache, if there is one at this place.
#[inline(always)]
fn fetch_line(line: *const f32) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every x86-64 processor has the instruction, and it reads nothing where nothing can be read.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
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
    /// R rows, V vectors at a time.
    ///
    /// # Safety
    /// With R ≥ 1 and K the rows of `b`: `a` must hold `(R − 1) · lda + K` values and `c` `(R − 1) · ldc + PANEL`; V
    /// vectors must divide a panel, and `columns` be at most [`PANEL`].
    #[inline(always)]
    unsafe fn rows<S: Simd, const AHEAD: bool, const R: usize, const V: usize>(self) {
        let Self { lda, ldc, accumulate, .. } = self;
        let (a, b, c) = (self.a.as_ptr(), self.b.as_ptr().cast::<f32>(), self.c.as_mut_ptr());
        let lanes = S::lanes32();
        for first in (0..self.columns).step_by(V * lanes) {
            let mut sums = [[0.0f32.splat::<S>(); V]; R];
            // SAFETY: `first` is a multiple of `V · lanes`, which divides a panel, and less than PANEL, so
            // `first + V · lanes` is at most PANEL; the rest is what the caller guarantees.
            unsafe {
                for k in 0..self.b.len() {
                    let from = b.add(k * PANEL + first);
                    if AHEAD {
                        let row = b.wrapping_add((self.b.len() + 1 + k) * PANEL);
                        for line in (0..PANEL).step_by(LINE) {
                            fetch_line(row.wrapping_add(line));
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
            // Fetching changes nothing, also where nothing follows.
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
                        // Exactly as long as they must be: a read or write beyond would be out of bounds.
                        let a = integers((rows.max(1) - 1) * lda + depth, 1);
                        let b: Vec<Row> = integers(depth * PANEL, 2).as_chunks::<PANEL>().0.to_vec();
                        let before = integers((rows.max(1) - 1) * ldc + PANEL, 3);
                        let mut c = before.clone();
                        let size = [rows, columns];
                        vectorized(Product { size, a: &a, lda, b: &b, c: &mut c, ldc, accumulate });
                        for row in 0..rows {
                            for column in 0..columns {
                                let of_column = b.iter().map(|row| row[column]);
                                let product: f32 = of_column.enumerate().map(|(k, b)| a[row * lda + k] * b).sum();
                                let at = row * ldc + column;
                                let expected = if accumulate { before[at] + product } else { product };
                                assert_eq!(c[at], expected, "{rows} x {depth} x {columns}, row {row}, column {column}");
                            }
                        }
                        for (at, (found, before)) in c.iter().zip(&before).enumerate() {
                            assert!(at % ldc < PANEL || found == before, "wrote between the rows, at {at}");
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
