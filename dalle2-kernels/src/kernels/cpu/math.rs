//! Branch-free transcendental functions of SIMD vectors.
//!
//! The polynomials are fitted for this module. The stated error bounds are without rounding, which adds about one ulp.

use macerator::{Scalar, Simd};

use super::raw::V;

/// 1.5 · 2²³: adding it rounds to an integer in the low bits.
const ROUND: f32 = 12_582_912.0;

/// The polynomial with the given coefficients, highest power first, by Horner's rule.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(x: V<S>, coefficients: [f32; N]) -> V<S> {
    let mut y = coefficients[0].splat::<S>();
    for coefficient in &coefficients[1..] {
        y = y.mul_add(x, coefficient.splat());
    }
    y
}

/// 2ⁿ for the integer n in the low bits of `shifted`, see [`ROUND`]: 0 for −127, infinite for 128.
#[inline(always)]
fn power<S: Simd>(shifted: V<S>) -> V<S> {
    let one = 1.0f32.to_bits().splat::<S>();
    ((shifted.reinterpret::<u32>() << 23) + one).reinterpret()
}

/// eˣ with a relative error below 1e-8 before rounding; infinite from 88.38 on and 0 below −87.33.
///
/// NaN gives NaN.
#[inline(always)]
pub(crate) fn exp<S: Simd>(x: V<S>) -> V<S> {
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let [round, most, least] = [ROUND, 89.0, -87.33].map(|value| value.splat::<S>());
    // Selections propagate NaN on every processor.
    let clamped = x.gt(most).select(most, x);
    let clamped = clamped.lt(least).select(least, clamped);
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E.splat(), round);
    let n = shifted - round;
    let r = n.mul_add((-LN_2_HIGH).splat(), clamped);
    let r = n.mul_add((-LN_2_LOW).splat(), r);
    let p = polynomial(r, [1.392_617_6e-3, 8.363_173e-3, 4.166_655_4e-2, 1.666_657_7e-1, 0.5, 1.0, 1.0]);
    x.lt(least).select(0.0.splat(), p * power(shifted))
}

/// 2ʰ with a relative error below 8e-8; 0 from −127 down and infinite from 128 up. NaN may give any of these.
#[inline(always)]
fn exp2<S: Simd>(h: V<S>) -> V<S> {
    // This order of arguments propagates NaN on x86.
    exp2_between(128.0.splat::<S>().min((-127.0).splat::<S>().max(h)))
}

/// [`exp2`] of h ≤ 0; NaN gives NaN.
#[inline(always)]
pub(crate) fn exp2_of_negative<S: Simd>(h: V<S>) -> V<S> {
    let least = (-127.0).splat::<S>();
    // A selection propagates NaN on every processor.
    exp2_between(h.lt(least).select(least, h))
}

/// [`exp2`] of −127 ≤ h ≤ 128.
#[inline(always)]
fn exp2_between<S: Simd>(h: V<S>) -> V<S> {
    let round = ROUND.splat();
    let shifted = h + round;
    let r = h - (shifted - round);
    polynomial(r, [1.327_647_2e-3, 9.675_542e-3, 5.550_713e-2, 2.402_212_1e-1, 6.931_469_4e-1, 1.000_000_1])
        * power(shifted)
}

/// The logistic function `1 / (1 + e⁻ˣ)`, with an absolute error below 1e-7. NaN may give any of its values.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(x: V<S>) -> V<S> {
    let one = 1.0.splat();
    one / (one + exp2(x * (-std::f32::consts::LOG2_E).splat()))
}

/// `e^(−x²/2)`: the standard normal density without its factor 1/√(2π).
#[inline(always)]
pub(crate) fn gaussian<S: Simd>(x: V<S>) -> V<S> {
    exp(x * x * (-0.5).splat())
}

/// `|x|` up to 16 and Φ(−|x|), the tail of the standard normal distribution. NaN may give any of their values.
///
/// The logarithm of the tail to base 2 is a polynomial of degree 8, fitted so that `|x| · tail` is off by less than 2e-8
/// for |x| up to 6. Further out it falls faster than the tail, which is below 1e-9 there; at 16 it is 0 in f32.
#[inline(always)]
pub(crate) fn normal_tail<S: Simd>(x: V<S>) -> (V<S>, V<S>) {
    const LOG_OF_TAIL: [f32; 9] = [
        -2.275_868_7e-6,
        3.296_798e-5,
        -1.572_786e-4,
        -2.024_794e-4,
        7.142_782e-3,
        -5.254_644e-2,
        -4.591_930_5e-1,
        -1.151_107,
        -0.999_999_94,
    ];
    let a = 16.0.splat::<S>().min(x.abs());
    // The logarithm is negative.
    (a, exp2_between((-127.0).splat::<S>().max(polynomial(a, LOG_OF_TAIL))))
}
