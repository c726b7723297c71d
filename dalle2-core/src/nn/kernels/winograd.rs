//! 3 × 3 convolution by Winograd's minimal filtering F(4 × 4, 3 × 3) (Lavin & Gray 2015, Fast Algorithms for
//! Convolutional Neural Networks, section 4): a quarter of the multiplications of the direct sum.
//!
//! An output tile of 4 × 4 pixels depends on a patch of 6 × 6. With the points 0, ±1, ±2 and ∞, the patch becomes
//! `V = Bᵀ d B` and the filter `U = G g Gᵀ`, both 6 × 6; channels are summed by one matrix product for each of the 36
//! points, and `Aᵀ M A` is the tile. The gradients are the transposed maps around products with the same factors.
//!
//! Matrices over points are stored as `[rows, 36, channels]`, so that tasks write whole rows; the products read them
//! through strides.

use std::marker::PhantomData;

use burn::backend::flex::FlexTensor;
use burn::backend::{Flex, ops::FloatTensorOps};
use burn::tensor::Shape;
use macerator::{Simd, WithSimd};
use rayon::prelude::*;

use super::conv::{ConvGradients, ConvShape};
use super::ops::{tensor, values};
use super::parallel::{for_each, vectorized};

/// Side of an output tile.
const TILE: usize = 4;
/// Points of the transformed domain.
const POINTS: usize = 36;
/// Channels that are transformed together: a cache line.
const LANES: usize = 16;
/// The same value of several channels.
type Lane = [f32; LANES];

/// Tiles whose products are taken together: enough for efficient products, few enough for the cache.
const TILES_AT_A_TIME: usize = 512;
/// Tiles below which transforming the weights costs more than it saves.
const LEAST_TILES: usize = 48;
/// Tiles of one image above which its points outgrow the cache.
const MOST_TILES: usize = 1024;

/// Whether this method applies to a convolution, and pays.
pub fn applies(shape: &ConvShape) -> bool {
    let per_image = tiles(shape.grid).iter().product::<usize>();
    shape.kernel == [3, 3]
        && shape.stride == [1, 1]
        && shape.channels.iter().all(|channels| *channels >= LANES)
        && per_image <= MOST_TILES
        && per_image * shape.batch >= LEAST_TILES
}

/// Tiles over a grid, down and across.
fn tiles(grid: [usize; 2]) -> [usize; 2] {
    grid.map(|side| side.div_ceil(TILE))
}

/// The convolution of `x` `[B, C_in, H, W]` with `weight` `[C_out, C_in, 3, 3]`, plus `bias` `[C_out]`.
pub fn forward(shape: &ConvShape, x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
    let [_, to] = shape.channels;
    let filters = filters(shape, weight).permute(&[1, 2, 0]); // [36, C_in, C_out]
    let mut y = vec![0.0; shape.batch * to * shape.grid[0] * shape.grid[1]];
    for block in Blocks::of(shape) {
        let patches = block.points::<6, Patch>(block.input(shape), x).permute(&[1, 0, 2]); // [36, T, C_in]
        let product = Flex::float_matmul(patches, filters.clone()); // [36, T, C_out]
        block.planes::<4, Tile>(block.output(shape), values(&product), &mut y);
    }
    let plane = shape.grid[0] * shape.grid[1];
    let n = y.len();
    for_each(y.par_chunks_mut(plane), n, |row, y| y.iter_mut().for_each(|y| *y += bias[row % to]));
    y
}

/// The gradients of [`forward`], given that of its result.
pub fn backward(
    shape: &ConvShape,
    x: &[f32],
    weight: &[f32],
    grad: &[f32],
    [wants_x, wants_weight]: [bool; 2],
) -> ConvGradients {
    let filters = wants_x.then(|| filters(shape, weight).permute(&[1, 0, 2])); // [36, C_out, C_in]
    let mut of_x = wants_x.then(|| vec![0.0; x.len()]);
    let mut of_filters: Option<FlexTensor> = None;
    for block in Blocks::of(shape) {
        let grad = block.points::<4, Spread>(block.output(shape), grad); // [T, 36, C_out]
        if let (Some(of_x), Some(filters)) = (&mut of_x, &filters) {
            let product = Flex::float_matmul(grad.permute(&[1, 0, 2]), filters.clone()); // [36, T, C_in]
            block.planes::<6, Scatter>(block.input(shape), values(&product), of_x);
        }
        if wants_weight {
            let patches = block.points::<6, Patch>(block.input(shape), x).permute(&[1, 0, 2]); // [36, T, C_in]
            let product = Flex::float_matmul(grad.permute(&[1, 2, 0]), patches); // [36, C_out, C_in]
            of_filters = Some(match of_filters {
                Some(sum) => Flex::float_add(sum, product),
                None => product,
            });
        }
    }
    ConvGradients { x: of_x, weight: of_filters.map(|sum| weights(shape, values(&sum))) }
}

/// The filters at the 36 points, `[C_out, 36, C_in]`.
fn filters(shape: &ConvShape, weight: &[f32]) -> FlexTensor {
    let [from, to] = shape.channels;
    let mut points = vec![0.0; to * POINTS * from];
    let n = points.len();
    let items = points.par_chunks_mut(POINTS * from).zip(weight.par_chunks(9 * from));
    for_each(items, n, |_, (points, weight)| vectorized(Filter { channels: from, weight, points }));
    tensor(points, Shape::from([to, POINTS, from]))
}

/// The gradient of the weights `[C_out, C_in, 3, 3]` from that of the filters `[36, C_out, C_in]`.
fn weights(shape: &ConvShape, of_filters: &[f32]) -> Vec<f32> {
    let [from, to] = shape.channels;
    let mut weight = vec![0.0; to * from * 9];
    let n = weight.len();
    for_each(weight.par_chunks_mut(9 * from), 4 * n, |row, weight| {
        vectorized(FilterGradient { channels: from, stride: to * from, points: &of_filters[row * from..], weight });
    });
    weight
}

/// Images of the batch that are worked on together.
#[derive(Debug, Clone, Copy)]
struct Blocks {
    first: usize,
    count: usize,
    tiles: [usize; 2],
}

/// Images and how tiles lie over them.
#[derive(Debug, Clone, Copy)]
struct Planes {
    channels: usize,
    /// \[H, W\]
    image: [usize; 2],
    /// Rows and columns by which the first patch reaches out of the image.
    padding: [usize; 2],
}

impl Blocks {
    fn of(shape: &ConvShape) -> impl Iterator<Item = Self> {
        let (batch, tiles) = (shape.batch, tiles(shape.grid));
        let step = (TILES_AT_A_TIME / (tiles[0] * tiles[1])).clamp(1, batch.max(1));
        (0..batch).step_by(step).map(move |first| Self { first, count: step.min(batch - first), tiles })
    }

    fn input(&self, shape: &ConvShape) -> Planes {
        Planes { channels: shape.channels[0], image: shape.image, padding: shape.padding }
    }

    fn output(&self, shape: &ConvShape) -> Planes {
        Planes { channels: shape.channels[1], image: shape.grid, padding: [0, 0] }
    }

    /// Patches of N × N pixels of the block's images at the 36 points, `[T, 36, C]`.
    fn points<const N: usize, M: Map<N, 6>>(&self, planes: Planes, images: &[f32]) -> FlexTensor {
        let [down, across] = self.tiles;
        let row = across * POINTS * planes.channels;
        let mut points = vec![0.0; self.count * down * row];
        let n = points.len();
        for_each(points.par_chunks_mut(row), n, |task, points| {
            let (image, tile_row) = (self.first + task / down, task % down);
            let size = planes.channels * planes.image[0] * planes.image[1];
            let image = &images[image * size..][..size];
            vectorized(ToPoints::<N, M> { planes, image, tile_row, across, points, map: PhantomData });
        });
        tensor(points, Shape::from([self.count * down * across, POINTS, planes.channels]))
    }

    /// Adds up the patches of N × N pixels that the points `[36, T, C]` stand for, in the block's images.
    fn planes<const N: usize, M: Map<6, N>>(&self, planes: Planes, points: &[f32], images: &mut [f32]) {
        let (channels, plane) = (planes.channels, planes.image[0] * planes.image[1]);
        let per_image = self.tiles[0] * self.tiles[1];
        let images = &mut images[self.first * channels * plane..][..self.count * channels * plane];
        let n = images.len();
        let groups: Vec<(usize, usize, &mut [f32])> = images
            .chunks_mut(channels * plane)
            .enumerate()
            .flat_map(|(image, planes)| {
                planes.chunks_mut(LANES * plane).enumerate().map(move |(group, planes)| (image, group, planes))
            })
            .collect();
        for_each(groups.into_par_iter(), n, |_, (image, group, out)| {
            vectorized(FromPoints::<N, M> {
                planes,
                tiles: self.tiles,
                points: &points[image * per_image * channels + group * LANES..],
                stride: self.count * per_image * channels,
                out,
                map: PhantomData,
            });
        });
    }
}

/// A linear map of the method along one axis.
trait Map<const N: usize, const M: usize> {
    fn apply(x: [f32; N]) -> [f32; M];
}

/// Bᵀ: pixels of a patch to points.
struct Patch;
/// B: the transpose of [`Patch`].
struct Scatter;
/// Aᵀ: points to pixels of a tile.
struct Tile;
/// A: the transpose of [`Tile`].
struct Spread;
/// G: weights to points.
struct ToFilter;
/// Gᵀ: the transpose of [`ToFilter`].
struct FromFilter;

impl Map<6, 6> for Patch {
    #[inline(always)]
    fn apply([d0, d1, d2, d3, d4, d5]: [f32; 6]) -> [f32; 6] {
        let (even, odd) = (d4 - 4.0 * d2, d3 - 4.0 * d1);
        let (even_2, odd_2) = (d4 - d2, 2.0 * (d3 - d1));
        [4.0 * d0 - 5.0 * d2 + d4, even + odd, even - odd, even_2 + odd_2, even_2 - odd_2, 4.0 * d1 - 5.0 * d3 + d5]
    }
}

impl Map<6, 6> for Scatter {
    #[inline(always)]
    fn apply([v0, v1, v2, v3, v4, v5]: [f32; 6]) -> [f32; 6] {
        let (sum, difference) = (v1 + v2, v1 - v2);
        let (sum_2, difference_2) = (v3 + v4, v3 - v4);
        [
            4.0 * v0,
            4.0 * (v5 - difference) - 2.0 * difference_2,
            -5.0 * v0 - 4.0 * sum - sum_2,
            difference + 2.0 * difference_2 - 5.0 * v5,
            v0 + sum + sum_2,
            v5,
        ]
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
fn along<const N: usize, const M: usize, F: Map<N, M>>(x: [&Lane; N]) -> [Lane; M] {
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
fn square<const N: usize, const M: usize, F: Map<N, M>>(x: &[[Lane; N]; N]) -> [[Lane; M]; M] {
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

/// A row of tiles of one image to its points.
struct ToPoints<'a, const N: usize, M> {
    planes: Planes,
    image: &'a [f32],
    tile_row: usize,
    across: usize,
    /// `[across, 36, C]`
    points: &'a mut [f32],
    map: PhantomData<M>,
}

impl<const N: usize, M: Map<N, 6>> WithSimd for ToPoints<'_, N, M> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        let Self { planes: Planes { channels, image: [height, width], padding }, image, .. } = self;
        let columns = self.across * TILE + N - TILE;
        let mut pixels = vec![[0.0; LANES]; N * columns];
        let mut half = vec![[[0.0; LANES]; 6]; columns];
        for first in (0..channels).step_by(LANES) {
            let lanes = LANES.min(channels - first);
            for row in 0..N {
                let Some(y) = (self.tile_row * TILE + row).checked_sub(padding[0]).filter(|y| *y < height) else {
                    continue; // stays zero, for every group of channels
                };
                let to = &mut pixels[row * columns + padding[1]..(row + 1) * columns];
                for lane in 0..lanes {
                    let from = &image[((first + lane) * height + y) * width..][..width];
                    to.iter_mut().zip(from).for_each(|(to, from)| to[lane] = *from);
                }
            }
            for (column, half) in half.iter_mut().enumerate() {
                *half = along::<N, 6, M>(std::array::from_fn(|row| &pixels[row * columns + column]));
            }
            for (tile, points) in self.points.chunks_exact_mut(POINTS * channels).enumerate() {
                for row in 0..6 {
                    let mapped = along::<N, 6, M>(std::array::from_fn(|i| &half[tile * TILE + i][row]));
                    for (column, value) in mapped.iter().enumerate() {
                        points[(row * 6 + column) * channels + first..][..lanes].copy_from_slice(&value[..lanes]);
                    }
                }
            }
        }
    }
}

/// The points of some channels of one image to their planes.
struct FromPoints<'a, const N: usize, M> {
    planes: Planes,
    tiles: [usize; 2],
    /// Those of point p, tile t and channel c are at `p · stride + t · C + c`.
    points: &'a [f32],
    stride: usize,
    /// Planes of at most [`LANES`] channels.
    out: &'a mut [f32],
    map: PhantomData<M>,
}

impl<const N: usize, M: Map<6, N>> WithSimd for FromPoints<'_, N, M> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        let Planes { channels, image: [height, width], padding } = self.planes;
        let [down, across] = self.tiles;
        let lanes = self.out.len() / (height * width);
        let columns = across * TILE + N - TILE;
        // A row of tiles, and what it adds to the next one.
        let mut band = vec![[0.0; LANES]; N * columns];
        let mut points = [[[0.0; LANES]; 6]; 6];
        for tile_row in 0..down {
            for tile_column in 0..across {
                let tile = tile_row * across + tile_column;
                for (row, points) in points.iter_mut().enumerate() {
                    for (column, point) in points.iter_mut().enumerate() {
                        let from = &self.points[(row * 6 + column) * self.stride + tile * channels..];
                        match from.first_chunk::<LANES>() {
                            Some(from) if lanes == LANES => *point = *from,
                            _ => point[..lanes].copy_from_slice(&from[..lanes]),
                        }
                    }
                }
                let pixels = square::<6, N, M>(&points);
                for (row, pixels) in pixels.iter().enumerate() {
                    let to = &mut band[row * columns + tile_column * TILE..][..N];
                    for (to, pixel) in to.iter_mut().zip(pixels) {
                        for lane in 0..LANES {
                            to[lane] += pixel[lane];
                        }
                    }
                }
            }
            let done = if tile_row + 1 == down { N } else { TILE };
            for row in 0..done {
                let Some(y) = (tile_row * TILE + row).checked_sub(padding[0]).filter(|y| *y < height) else {
                    continue;
                };
                let from = &band[row * columns + padding[1]..(row + 1) * columns];
                for lane in 0..lanes {
                    let to = &mut self.out[(lane * height + y) * width..][..width];
                    to.iter_mut().zip(from).for_each(|(to, from)| *to = from[lane]);
                }
            }
            band.copy_within(TILE * columns.., 0);
            band[(N - TILE) * columns..].fill([0.0; LANES]);
        }
    }
}

/// The weights of one output channel to the points.
struct Filter<'a> {
    channels: usize,
    /// `[C_in, 9]`
    weight: &'a [f32],
    /// `[36, C_in]`
    points: &'a mut [f32],
}

impl WithSimd for Filter<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        for first in (0..self.channels).step_by(LANES) {
            let lanes = LANES.min(self.channels - first);
            let mut weights = [[[0.0; LANES]; 3]; 3];
            for (lane, from) in self.weight[first * 9..].chunks_exact(9).take(lanes).enumerate() {
                for (tap, from) in from.iter().enumerate() {
                    weights[tap / 3][tap % 3][lane] = *from;
                }
            }
            let points = square::<3, 6, ToFilter>(&weights);
            for (point, value) in points.as_flattened().iter().enumerate() {
                self.points[point * self.channels + first..][..lanes].copy_from_slice(&value[..lanes]);
            }
        }
    }
}

/// The gradient of the points to that of the weights of one output channel.
struct FilterGradient<'a> {
    channels: usize,
    /// That of point p and input channel c is at `p · stride + c`.
    points: &'a [f32],
    stride: usize,
    /// `[C_in, 9]`
    weight: &'a mut [f32],
}

impl WithSimd for FilterGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        for first in (0..self.channels).step_by(LANES) {
            let lanes = LANES.min(self.channels - first);
            let mut points = [[[0.0; LANES]; 6]; 6];
            for (point, to) in points.as_flattened_mut().iter_mut().enumerate() {
                to[..lanes].copy_from_slice(&self.points[point * self.stride + first..][..lanes]);
            }
            let weights = square::<6, 3, FromFilter>(&points);
            for (lane, to) in self.weight[first * 9..].chunks_exact_mut(9).take(lanes).enumerate() {
                for (tap, to) in to.iter_mut().enumerate() {
                    *to = weights[tap / 3][tap % 3][lane];
                }
            }
        }
    }
}
