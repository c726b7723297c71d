//! The linear maps of F(4 × 4, 3 × 3) and F(2 × 2, 3 × 3) along one axis, and their application to vectors.

use macerator::{Scalar, Simd};

use super::super::raw::{V, load, store};

/// Values that are transformed together: a vector of the widest registers.
pub const LANES: usize = 16;
/// The same value of several tiles or channels.
pub type Lane = [f32; LANES];

/// A linear map of the method along one axis.
pub trait Map<const N: usize, const M: usize> {
    fn apply<S: Simd>(x: [V<S>; N]) -> [V<S>; M];
}

/// Bᵀ: pixels of a patch to points.
pub struct Patch;
/// Aᵀ: points to pixels of a tile.
pub struct Tile;
/// A: the transpose of [`Tile`].
pub struct Spread;
/// G: weights to points.
pub struct ToFilter;
/// Gᵀ: the transpose of [`ToFilter`].
pub struct FromFilter;

/// [`Patch`] of F(2 × 2, 3 × 3).
pub struct SmallPatch;
/// [`Tile`] of F(2 × 2, 3 × 3).
pub struct SmallTile;
/// [`ToFilter`] of F(2 × 2, 3 × 3).
pub struct ToSmallFilter;

/// A size of the method: tiles of T × T pixels from patches of N × N.
pub trait Size<const T: usize, const N: usize>: Sync {
    type Patch: Map<N, N>;
    type ToFilter: Map<3, N>;
    type Tile: Map<N, T>;
}

/// F(4 × 4, 3 × 3)
pub struct Large;
/// F(2 × 2, 3 × 3)
pub struct Small;

impl Size<4, 6> for Large {
    type Patch = Patch;
    type ToFilter = ToFilter;
    type Tile = Tile;
}

impl Size<2, 4> for Small {
    type Patch = SmallPatch;
    type ToFilter = ToSmallFilter;
    type Tile = SmallTile;
}

/// `a + factor · b`
#[inline(always)]
fn plus<S: Simd>(a: V<S>, factor: f32, b: V<S>) -> V<S> {
    factor.splat::<S>().mul_add(b, a)
}

impl Map<6, 6> for Patch {
    #[inline(always)]
    fn apply<S: Simd>([d0, d1, d2, d3, d4, d5]: [V<S>; 6]) -> [V<S>; 6] {
        let (even, odd) = (plus(d4, -4.0, d2), plus(d3, -4.0, d1));
        let (even_2, odd_2) = (d4 - d2, (d3 - d1) * 2.0.splat());
        let ends = |a, b, c| plus(plus(c, -5.0, b), 4.0, a);
        [ends(d0, d2, d4), even + odd, even - odd, even_2 + odd_2, even_2 - odd_2, ends(d1, d3, d5)]
    }
}

impl Map<6, 4> for Tile {
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

impl Map<4, 6> for Spread {
    #[inline(always)]
    fn apply<S: Simd>([y0, y1, y2, y3]: [V<S>; 4]) -> [V<S>; 6] {
        let (even, odd) = (y0 + y2, y1 + y3);
        let (even_2, odd_2) = (plus(y0, 4.0, y2), plus(y1, 4.0, y3) * 2.0.splat());
        [y0, even + odd, even - odd, even_2 + odd_2, even_2 - odd_2, y3]
    }
}

impl Map<3, 6> for ToFilter {
    #[inline(always)]
    fn apply<S: Simd>([g0, g1, g2]: [V<S>; 3]) -> [V<S>; 6] {
        let even = (g0 + g2) * (-1.0 / 6.0).splat();
        let odd = g1 * (1.0 / 6.0).splat();
        let even_2 = plus(g0 * (1.0 / 24.0).splat(), 1.0 / 6.0, g2);
        let odd_2 = g1 * (1.0 / 12.0).splat();
        [g0 * 0.25.splat(), even - odd, even + odd, even_2 + odd_2, even_2 - odd_2, g2]
    }
}

impl Map<6, 3> for FromFilter {
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

impl Map<4, 4> for SmallPatch {
    #[inline(always)]
    fn apply<S: Simd>([d0, d1, d2, d3]: [V<S>; 4]) -> [V<S>; 4] {
        [d0 - d2, d1 + d2, d2 - d1, d1 - d3]
    }
}

impl Map<4, 2> for SmallTile {
    #[inline(always)]
    fn apply<S: Simd>([m0, m1, m2, m3]: [V<S>; 4]) -> [V<S>; 2] {
        [m0 + m1 + m2, m1 - m2 - m3]
    }
}

impl Map<3, 4> for ToSmallFilter {
    #[inline(always)]
    fn apply<S: Simd>([g0, g1, g2]: [V<S>; 3]) -> [V<S>; 4] {
        let (even, odd) = ((g0 + g2) * 0.5.splat(), g1 * 0.5.splat());
        [g0, even + odd, even - odd, g2]
    }
}

/// Applies a map to lanes.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "two arrays of different lengths around one map")]
pub fn along<S: Simd, const N: usize, const M: usize, F: Map<N, M>>(x: [&Lane; N], y: &mut [Lane; M]) {
    for first in (0..LANES).step_by(S::lanes32()) {
        let mut values = [0.0.splat::<S>(); N];
        for n in 0..N {
            values[n] = load(&x[n][first..]);
        }
        let mapped = F::apply::<S>(values);
        for m in 0..M {
            store(mapped[m], &mut y[m][first..]);
        }
    }
}

/// Applies a map along both axes of a square: `at` gives the vector of a row and column, `to` takes it.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "rows and columns, which closures or two iterators would hide")]
pub fn square<S: Simd, const N: usize, const M: usize, F: Map<N, M>>(
    at: impl Fn(usize, usize) -> V<S>,
    mut to: impl FnMut(usize, usize, V<S>),
) {
    let mut rows = [[0.0.splat::<S>(); N]; M];
    for column in 0..N {
        let mut values = [0.0.splat::<S>(); N];
        for row in 0..N {
            values[row] = at(row, column);
        }
        let mapped = F::apply::<S>(values);
        for row in 0..M {
            rows[row][column] = mapped[row];
        }
    }
    for row in 0..M {
        let mapped = F::apply::<S>(rows[row]);
        for column in 0..M {
            to(row, column, mapped[column]);
        }
    }
}
