//! The one-dimensional transforms of F(4 × 4, 3 × 3) and F(2 × 2, 3 × 3), and their application along both axes.

use macerator::{Scalar, Simd};

use super::super::raw::{V, load, store};

/// Elements that are transformed together, the lanes of an AVX-512 vector.
pub(crate) const LANES: usize = 16;
/// One element of several tiles or channels.
pub(crate) type Lane = [f32; LANES];

/// A transform along one axis.
pub(crate) trait Transform<const N: usize, const M: usize> {
    fn apply<S: Simd>(x: [V<S>; N]) -> [V<S>; M];
}

/// The input transform Bᵀ of F(4 × 4, 3 × 3).
pub(crate) struct InputTransform;
/// The output transform Aᵀ of F(4 × 4, 3 × 3).
pub(crate) struct OutputTransform;
/// A, the transpose of [`OutputTransform`].
pub(crate) struct OutputTransformTransposed;
/// The filter transform G of F(4 × 4, 3 × 3).
pub(crate) struct FilterTransform;
/// Gᵀ, the transpose of [`FilterTransform`].
pub(crate) struct FilterTransformTransposed;

/// [`InputTransform`] of F(2 × 2, 3 × 3).
pub(crate) struct InputTransformF2;
/// [`OutputTransform`] of F(2 × 2, 3 × 3).
pub(crate) struct OutputTransformF2;
/// [`FilterTransform`] of F(2 × 2, 3 × 3).
pub(crate) struct FilterTransformF2;

/// A tile size: output tiles of T × T pixels from input tiles of N × N.
pub(crate) trait TileSize<const T: usize, const N: usize>: Sync {
    type Input: Transform<N, N>;
    type Filter: Transform<3, N>;
    type Output: Transform<N, T>;
}

/// F(4 × 4, 3 × 3)
pub(crate) struct F4;
/// F(2 × 2, 3 × 3)
pub(crate) struct F2;

impl TileSize<4, 6> for F4 {
    type Input = InputTransform;
    type Filter = FilterTransform;
    type Output = OutputTransform;
}

impl TileSize<2, 4> for F2 {
    type Input = InputTransformF2;
    type Filter = FilterTransformF2;
    type Output = OutputTransformF2;
}

/// `a + factor · b`
#[inline(always)]
fn plus<S: Simd>(a: V<S>, factor: f32, b: V<S>) -> V<S> {
    factor.splat::<S>().mul_add(b, a)
}

impl Transform<6, 6> for InputTransform {
    #[inline(always)]
    fn apply<S: Simd>([d0, d1, d2, d3, d4, d5]: [V<S>; 6]) -> [V<S>; 6] {
        let (even, odd) = (plus(d4, -4.0, d2), plus(d3, -4.0, d1));
        let (even_2, odd_2) = (d4 - d2, (d3 - d1) * 2.0.splat());
        let ends = |a, b, c| plus(plus(c, -5.0, b), 4.0, a);
        [ends(d0, d2, d4), even + odd, even - odd, even_2 + odd_2, even_2 - odd_2, ends(d1, d3, d5)]
    }
}

impl Transform<6, 4> for OutputTransform {
    #[inline(always)]
    fn apply<S: Simd>([m0, m1, m2, m3, m4, m5]: [V<S>; 6]) -> [V<S>; 4] {
        let (sum, difference) = (m1 + m2, m1 - m2);
        let (sum_2, difference_2) = (m3 + m4, m3 - m4);
        [
            m0 + sum + sum_2,
            plus(difference, 2.0, difference_2),
            plus(sum, 4.0, sum_2),
            plus(difference + m5, 8.0, difference_2),
        ]
    }
}

impl Transform<4, 6> for OutputTransformTransposed {
    #[inline(always)]
    fn apply<S: Simd>([y0, y1, y2, y3]: [V<S>; 4]) -> [V<S>; 6] {
        let (even, odd) = (y0 + y2, y1 + y3);
        let (even_2, odd_2) = (plus(y0, 4.0, y2), plus(y1, 4.0, y3) * 2.0.splat());
        [y0, even + odd, even - odd, even_2 + odd_2, even_2 - odd_2, y3]
    }
}

impl Transform<3, 6> for FilterTransform {
    #[inline(always)]
    fn apply<S: Simd>([g0, g1, g2]: [V<S>; 3]) -> [V<S>; 6] {
        let even = (g0 + g2) * (-1.0 / 6.0).splat();
        let odd = g1 * (1.0 / 6.0).splat();
        let even_2 = plus(g0 * (1.0 / 24.0).splat(), 1.0 / 6.0, g2);
        let odd_2 = g1 * (1.0 / 12.0).splat();
        [g0 * 0.25.splat(), even - odd, even + odd, even_2 + odd_2, even_2 - odd_2, g2]
    }
}

impl Transform<6, 3> for FilterTransformTransposed {
    #[inline(always)]
    fn apply<S: Simd>([u0, u1, u2, u3, u4, u5]: [V<S>; 6]) -> [V<S>; 3] {
        let (sum, difference) = ((u1 + u2) * (-1.0 / 6.0).splat(), (u2 - u1) * (1.0 / 6.0).splat());
        let sum_2 = u3 + u4;
        [
            plus(plus(sum, 0.25, u0), 1.0 / 24.0, sum_2),
            plus(difference, 1.0 / 12.0, u3 - u4),
            plus(sum + u5, 1.0 / 6.0, sum_2),
        ]
    }
}

impl Transform<4, 4> for InputTransformF2 {
    #[inline(always)]
    fn apply<S: Simd>([d0, d1, d2, d3]: [V<S>; 4]) -> [V<S>; 4] {
        [d0 - d2, d1 + d2, d2 - d1, d1 - d3]
    }
}

impl Transform<4, 2> for OutputTransformF2 {
    #[inline(always)]
    fn apply<S: Simd>([m0, m1, m2, m3]: [V<S>; 4]) -> [V<S>; 2] {
        [m0 + m1 + m2, m1 - m2 - m3]
    }
}

impl Transform<3, 4> for FilterTransformF2 {
    #[inline(always)]
    fn apply<S: Simd>([g0, g1, g2]: [V<S>; 3]) -> [V<S>; 4] {
        let (even, odd) = ((g0 + g2) * 0.5.splat(), g1 * 0.5.splat());
        [g0, even + odd, even - odd, g2]
    }
}

/// Applies a transform along one axis.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "two arrays of different lengths around one transform")]
pub(crate) fn transform_1d<S: Simd, const N: usize, const M: usize, F: Transform<N, M>>(
    x: [&Lane; N],
    y: &mut [Lane; M],
) {
    for first in (0..LANES).step_by(S::lanes32()) {
        let mut values = [0.0.splat::<S>(); N];
        for n in 0..N {
            values[n] = load(&x[n][first..]);
        }
        let transformed = F::apply::<S>(values);
        for m in 0..M {
            store(transformed[m], &mut y[m][first..]);
        }
    }
}

/// Applies a transform along both axes: `at` returns the vector of a row and column, `to` receives the result.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "rows and columns, which closures or two iterators would hide")]
pub(crate) fn transform_2d<S: Simd, const N: usize, const M: usize, F: Transform<N, M>>(
    at: impl Fn(usize, usize) -> V<S>,
    mut to: impl FnMut(usize, usize, V<S>),
) {
    let mut rows = [[0.0.splat::<S>(); N]; M];
    for column in 0..N {
        let mut values = [0.0.splat::<S>(); N];
        for row in 0..N {
            values[row] = at(row, column);
        }
        let transformed = F::apply::<S>(values);
        for row in 0..M {
            rows[row][column] = transformed[row];
        }
    }
    for row in 0..M {
        let transformed = F::apply::<S>(rows[row]);
        for column in 0..M {
            to(row, column, transformed[column]);
        }
    }
}
