//! Transcendental functions written so that a loop over them vectorises: no branches, no calls.
//!
//! Each function is generic over the instruction set that [`macerator`] selected at run time, which decides whether a
//! multiply-add is one instruction. The polynomials are Chebyshev fits made for this file; the bounds given are those
//! of the fit, rounding adds about one unit in the last place.

use macerator::{Simd, VFma};

/// `a · b + c`, fused where the instruction set can.
#[inline(always)]
pub fn fma<S: Simd>(a: f32, b: f32, c: f32) -> f32 {
    if f32::is_accelerated::<S>() { a.mul_add(b, c) } else { a * b + c }
}

/// The polynomial with the given coefficients, highest power first, by Horner's rule.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut y = coefficients[0];
    for coefficient in &coefficients[1..] {
        y = fma::<S>(y, x, *coefficient);
    }
    y
}

/// eˣ with a relative error below 1e-8 before rounding; infinite from 88.38 on and 0 below −87.33.
///
/// NaN gives NaN.
#[inline(always)]
pub fn exp<S: Simd>(x: f32) -> f32 {
    /// 1.5 · 2²³: adding it rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const LEAST: f32 = -87.33;
    // Written so that NaN passes every comparison.
    let clamped = if x > 89.0 { 89.0 } else { x };
    let clamped = if clamped < LEAST { LEAST } else { clamped };
    let shifted = fma::<S>(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma::<S>(n, -LN_2_LOW, fma::<S>(n, -LN_2_HIGH, clamped));
    let p = polynomial::<S, 7>(r, [1.392_617_6e-3, 8.363_173e-3, 4.166_655_4e-2, 1.666_657_7e-1, 0.5, 1.0, 1.0]);
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    if x < LEAST { 0.0 } else { p * power }
}

/// The logistic function `1 / (1 + e⁻ˣ)`.
#[inline(always)]
pub fn sigmoid<S: Simd>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<S>(-x))
}

/// `e^(−x²/2)`: the standard normal density but for its constant 1/√(2π).
#[inline(always)]
pub fn gaussian<S: Simd>(x: f32) -> f32 {
    exp::<S>(-0.5 * x * x)
}

/// The standard normal distribution function Φ(x).
///
/// With a = |x|, its tail is `e^(g(a) − a²/2)`, where g is a polynomial of degree 12, off by less than 5e-9 for a ≤ 6;
/// beyond that, where the tail is below 1e-9, g stays what it is at 6, which keeps that bound and no relative one.
#[inline(always)]
pub fn normal_cdf<S: Simd>(x: f32) -> f32 {
    const LOG_OF_MILLS: [f32; 13] = [
        -1.671_082_7e-10,
        7.416_041_6e-9,
        -1.491_191_5e-7,
        1.791_967_7e-6,
        -1.419_566e-5,
        7.554_149e-5,
        -2.419_288_2e-4,
        6.238_325e-5,
        4.768_789e-3,
        -3.633_185_5e-2,
        1.816_897_2e-1,
        -7.978_846e-1,
        -std::f32::consts::LN_2,
    ];
    let a = x.abs();
    // Written so that NaN passes.
    let near = if a > 6.0 { 6.0 } else { a };
    let tail = exp::<S>(fma::<S>(-0.5 * a, a, polynomial::<S, 13>(near, LOG_OF_MILLS)));
    if x > 0.0 { 1.0 - tail } else { tail }
}
