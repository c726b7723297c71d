//! The register tile of a matrix product: the only unsafe code of the workspace.
//!
//! A tile reads one operand in panels of [`PANEL`] columns and keeps a few rows of the result in registers, so that each
//! loaded value meets many multiply-adds (Goto and van de Geijn 2008, Anatomy of High-Performance Matrix
//! Multiplication, section 5).

#![allow(unsafe_code, reason = "vectors are read and written through pointers, within bounds that are checked first")]

use macerator::{Scalar, Simd};

/// Columns of a panel: two of the widest vectors.
pub const PANEL: usize = 32;
/// Rows of a whole tile.
pub const ROWS: usize = 8;

/// A row of a panel.
pub type Row = [f32; PANEL];

/// Writes `a · b` into the rows of `c`, or adds it to them.
///
/// `a` has `rows` rows of `b.len()` values, `lda` apart; `c` has as many rows of [`PANEL`] values, `ldc` apart.
///
/// # Panics
/// If a slice is too short for its rows.
#[inline(always)]
pub fn product<S: Simd>(
    rows: usize,
    (a, lda): (&[f32], usize),
    b: &[Row],
    (c, ldc): (&mut [f32], usize),
    accumulate: bool,
) {
    if rows == 0 {
        return;
    }
    assert!(a.len() >= (rows - 1) * lda + b.len(), "product: `a` is too short");
    assert!(c.len() >= (rows - 1) * ldc + PANEL, "product: `c` is too short");
    let mut row = 0;
    while row < rows {
        // Sixteen vector registers hold half a tile, thirty-two a whole one.
        let step = match rows - row {
            8.. if S::lanes32() >= PANEL / 2 => 8,
            4.. => 4,
            2.. => 2,
            _ => 1,
        };
        let operands = Operands { a: &a[row * lda..], lda, b, c: &mut c[row * ldc..], ldc, accumulate };
        // SAFETY: `step` is at most `rows - row`, so the slices hold that many rows from here on, as asserted above.
        unsafe {
            match step {
                8 => operands.rows::<S, 8>(),
                4 => operands.rows::<S, 4>(),
                2 => operands.rows::<S, 2>(),
                _ => operands.rows::<S, 1>(),
            }
        }
        row += step;
    }
}

struct Operands<'a> {
    a: &'a [f32],
    lda: usize,
    b: &'a [Row],
    c: &'a mut [f32],
    ldc: usize,
    accumulate: bool,
}

impl Operands<'_> {
    /// # Safety
    /// With R ≥ 1 and K the rows of `b`: `a` must hold `(R − 1) · lda + K` values and `c` `(R − 1) · ldc + PANEL`.
    #[inline(always)]
    unsafe fn rows<S: Simd, const R: usize>(self) {
        let Self { lda, ldc, accumulate, .. } = self;
        let (a, b, c) = (self.a.as_ptr(), self.b.as_ptr().cast::<f32>(), self.c.as_mut_ptr());
        let lanes = S::lanes32();
        for first in (0..PANEL).step_by(2 * lanes) {
            let mut sums = [[0.0f32.splat::<S>(); 2]; R];
            // SAFETY: lanes is a power of two of at most PANEL / 2, so `first + 2 · lanes` is at most PANEL; the rest is
            // what the caller guarantees.
            unsafe {
                for k in 0..self.b.len() {
                    let low = f32::vload_unaligned::<S>(b.add(k * PANEL + first));
                    let high = f32::vload_unaligned::<S>(b.add(k * PANEL + first + lanes));
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let factor = (*a.add(r * lda + k)).splat::<S>();
                        sums[0] = factor.mul_add(low, sums[0]);
                        sums[1] = factor.mul_add(high, sums[1]);
                    }
                }
                for (r, [low, high]) in sums.into_iter().enumerate() {
                    let to = c.add(r * ldc + first);
                    let (mut low, mut high) = (low, high);
                    if accumulate {
                        low = low + f32::vload_unaligned::<S>(to);
                        high = high + f32::vload_unaligned::<S>(to.add(lanes));
                    }
                    f32::vstore_unaligned::<S>(to, low);
                    f32::vstore_unaligned::<S>(to.add(lanes), high);
                }
            }
        }
    }
}
