//! The linear maps of F(4 × 4, 3 × 3) along one axis, and their application to vectors.

/// Values that are transformed together: a vector of the widest registers.
pub const LANES: usize = 16;
/// The same value of several tiles or channels.
pub type Lane = [f32; LANES];

/// A linear map of the method along one axis.
pub trait Map<const N: usize, const M: usize> {
    fn apply(x: [f32; N]) -> [f32; M];
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

impl Map<6, 6> for Patch {
    #[inline(always)]
    fn apply([d0, d1, d2, d3, d4, d5]: [f32; 6]) -> [f32; 6] {
        let (even, odd) = (d4 - 4.0 * d2, d3 - 4.0 * d1);
        let (even_2, odd_2) = (d4 - d2, 2.0 * (d3 - d1));
        [4.0 * d0 - 5.0 * d2 + d4, even + odd, even - odd, even_2 + odd_2, even_2 - odd_2, 4.0 * d1 - 5.0 * d3 + d5]
    }
}

impl Map<6, 4> for Tile {
    #[inline(always)]
    fn apply([m0, m1, m2, m3, m4, m5]: [f32; 6]) -> [f32; 4] {
        let (sum, difference) = (m1 + m2, m1 - m2);
        let (sum_2, difference_2) = (m3 + m4, m3 - m4);
        [m0 + sum + sum_2, difference + 2.0 * difference_2, sum + 4.0 * sum_2, difference + 8.0 * difference_2 + m5]
    }
}

impl Map<4, 6> for Spread {
    #[inline(always)]
    fn apply([y0, y1, y2, y3]: [f32; 4]) -> [f32; 6] {
        let (even, odd) = (y0 + y2, y1 + y3);
        let (even_2, odd_2) = (y0 + 4.0 * y2, 2.0 * y1 + 8.0 * y3);
        [y0, even + odd, even - odd, even_2 + odd_2, even_2 - odd_2, y3]
    }
}

impl Map<3, 6> for ToFilter {
    #[inline(always)]
    fn apply([g0, g1, g2]: [f32; 3]) -> [f32; 6] {
        let even = (g0 + g2) * (-1.0 / 6.0);
        let odd = g1 * (1.0 / 6.0);
        let even_2 = g0 * (1.0 / 24.0) + g2 * (1.0 / 6.0);
        let odd_2 = g1 * (1.0 / 12.0);
        [0.25 * g0, even - odd, even + odd, even_2 + odd_2, even_2 - odd_2, g2]
    }
}

impl Map<6, 3> for FromFilter {
    #[inline(always)]
    fn apply([u0, u1, u2, u3, u4, u5]: [f32; 6]) -> [f32; 3] {
        let (sum, difference) = ((u1 + u2) * (-1.0 / 6.0), (u2 - u1) * (1.0 / 6.0));
        let sum_2 = u3 + u4;
        [0.25 * u0 + sum + sum_2 * (1.0 / 24.0), difference + (u3 - u4) * (1.0 / 12.0), sum + sum_2 * (1.0 / 6.0) + u5]
    }
}

/// Applies a map to lanes.
#[inline(always)]
pub fn along<const N: usize, const M: usize, F: Map<N, M>>(x: [&Lane; N]) -> [Lane; M] {
    let mut y = [[0.0; LANES]; M];
    for l in 0..LANES {
        let mapped = F::apply(x.map(|x| x[l]));
        for m in 0..M {
            y[m][l] = mapped[m];
        }
    }
    y
}

/// Applies a map along both axes of a square.
#[inline(always)]
pub fn square<const N: usize, const M: usize, F: Map<N, M>>(x: &[[Lane; N]; N]) -> [[Lane; M]; M] {
    let mut half = [[[0.0; LANES]; M]; N];
    for (half, row) in half.iter_mut().zip(x) {
        *half = along::<N, M, F>(std::array::from_fn(|i| &row[i]));
    }
    let mut y = [[[0.0; LANES]; M]; M];
    for column in 0..M {
        let mapped = along::<N, M, F>(std::array::from_fn(|i| &half[i][column]));
        for (row, value) in mapped.into_iter().enumerate() {
            y[row][column] = value;
        }
    }
    y
}
