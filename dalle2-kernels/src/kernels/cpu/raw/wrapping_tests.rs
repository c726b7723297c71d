//! Sizes whose products or sums wrap around must be refused.
//!
//! Overflow checks of the dev profile hide a missing check. To run all tests of `raw` as in release, under
//! AddressSanitizer: `RUSTFLAGS="-Zsanitizer=address -Coverflow-checks=off" cargo +nightly test -p dalle2-kernels --lib
//! --target x86_64-unknown-linux-gnu raw::`.

use std::panic::{AssertUnwindSafe, catch_unwind};

use half::bf16 as Bf16;
use macerator::{Simd, WithSimd};

use super::super::panels::Matrix;
use super::super::parallel::vectorized;
use super::{PANEL, Row, UninitRows, bf16, product, swap_middle, transpose};

/// Asserts that `f` panics with a message that contains `expected`.
fn assert_refused(expected: &str, f: impl FnOnce()) {
    let panic = catch_unwind(AssertUnwindSafe(f)).expect_err("the sizes must be refused");
    let message = panic.downcast_ref::<String>().cloned();
    let message = message.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    assert!(message.as_deref().is_some_and(|text| text.contains(expected)), "{message:?} instead of {expected:?}");
}

struct Product<'a> {
    a: (&'a [f32], usize),
    b: &'a [Row],
    c: (&'a mut [f32], usize),
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        product::<S, false>([2, PANEL], self.a, self.b, self.c, false);
    }
}

#[test]
fn strides_of_the_micro_kernel_that_wrap_are_refused() {
    let b = [[0.0; PANEL]; 4];
    let mut c = vec![0.0; 2 * PANEL];
    // lda + 4 = 0 modulo the range of usize.
    assert_refused("`a` is too short", || {
        vectorized(Product { a: (&[0.0; 4], usize::MAX - 3), b: &b, c: (&mut c, PANEL) });
    });
    let mut c = vec![0.0; PANEL];
    assert_refused("`c` is too short", || {
        vectorized(Product { a: (&[0.0; 8], 4), b: &b, c: (&mut c, usize::MAX - PANEL + 1) });
    });
}

#[test]
fn strides_and_offsets_of_bf16_products_that_wrap_are_refused() {
    // The inverse of 31 modulo the range of usize, by Newton's method: 31 · stride = 16.
    let inverse = (0..7).fold(1usize, |x, _| x.wrapping_mul(2usize.wrapping_sub(31usize.wrapping_mul(x))));
    let wrapping = inverse.wrapping_mul(16);
    assert_eq!(wrapping.wrapping_mul(31), 16);
    let (weight, columns) = (vec![Bf16::ZERO; 32 * 32], vec![0; 16 * 32]);
    let tap = bf16::Tap { weight: 0, column: 0 };
    let valid =
        bf16::Operands { weight: &weight, stride: 32, step: 32, columns: &columns, plane: 32, taps: &[tap], depth: 32 };
    // 15 · plane = −1 modulo the range of usize.
    let plane = usize::MAX / 15;
    let cases = [
        bf16::Operands { stride: wrapping, ..valid },
        bf16::Operands { plane, ..valid },
        bf16::Operands { taps: &[bf16::Tap { weight: usize::MAX - 1023, column: 0 }], ..valid },
        bf16::Operands { taps: &[bf16::Tap { weight: 0, column: usize::MAX - 511 }], ..valid },
    ];
    for operands in cases {
        assert_refused("an operand is too short", || {
            bf16::product(bf16::Instructions::Avx512, &operands, &mut [[0.0; 32]; 32]);
        });
    }
}

#[test]
fn matrices_whose_size_wraps_are_refused() {
    let half = 1 << (usize::BITS / 2);
    assert_refused("length of a matrix", || {
        Matrix::new(&[], [half, half]);
    });
    assert_refused("overflow", || {
        UninitRows::new(half, half);
    });
    assert_refused("length differs", || {
        swap_middle(&[], [1, half, half, 1]);
    });
}

#[test]
fn strides_of_transposes_that_wrap_are_refused() {
    // 15 · stride = −1 modulo the range of usize.
    let stride = usize::MAX / 15;
    assert_refused("`from` is too short", || transpose((&[0.0; 256], stride), (&mut [0.0; 256], 16)));
    assert_refused("`to` is too short", || transpose((&[0.0; 256], 16), (&mut [0.0; 256], stride)));
}
