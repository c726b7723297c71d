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
/// NaN gives 0: callers multiply by, or divide into, the argument where NaN has to survive.
#[inline(always)]
pub fn exp<S: Simd>(x: f32) -> f32 {
    /// 1.5 · 2²³: adding it rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const LEAST: f32 = -87.33;
    let clamped = if x < 89.0 { x } else { 89.0 };
    let clamped = if clamped > LEAST { clamped } else { LEAST };
    let shifted = fma::<S>(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma::<S>(n, -LN_2_LOW, fma::<S>(n, -LN_2_HIGH, clamped));
    let p = polynomial::<S, 7>(r, [1.392_617_6e-3, 8.363_173e-3, 4.166_655_4e-2, 1.666_657_7e-1, 0.5, 1.0, 1.0]);
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    if x > LEAST { p * power } else { 0.0 }
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

/// The standard normal distribution function Φ(x), given [`gaussian`] of x.
///
/// The tail is the density times Mills' ratio, here a polynomial of degree 9 in `1 / (1 + 0.35 |x|)` with a relative
/// error below 4e-8 for |x| ≤ 14; beyond that the density is 0 in f32.
#[inline(always)]
pub fn normal_cdf<S: Simd>(x: f32, gaussian: f32) -> f32 {
    const MILLS: [f32; 9] = [
        -2.967_952_2e-2,
        1.465_458_3e-1,
        -2.609_612_3e-1,
        1.650_51e-1,
        -2.704_660_8e-2,
        1.071_145_9e-1,
        1.194_449_2e-1,
        1.399_123e-1,
        1.396_187_1e-1,
    ];
    let u = 1.0 / fma::<S>(x.abs(), 0.35, 1.0);
    let tail = gaussian * u * polynomial::<S, 9>(u, MILLS);
    if x > 0.0 { 1.0 - tail } else { tail }
}
