//! The gradient of the weights.
//!
//! Matrices over points are stored as `[tiles, 36, channels]`, so that tasks write whole rows; the products read them
//! through strides.

use std::marker::PhantomData;

use burn::backend::flex::FlexTensor;
use burn::backend::{Flex, ops::FloatTensorOps};
use burn::tensor::Shape;
use macerator::{Simd, WithSimd};
use rayon::prelude::*;

use super::super::conv::ConvShape;
use super::super::ops::{tensor, values};
use super::super::parallel::{for_each, vectorized};
use super::maps::{FromFilter, LANES, Map, Patch, Spread, along, square};
use super::{POINTS, TILE, tiles};

/// Tiles whose products are taken together: enough for efficient products, few enough for the cache.
const TILES_AT_A_TIME: usize = 512;

/// The gradient of the weights `[C_out, C_in, 3, 3]`, given the input and the gradient of the result.
pub fn gradient(shape: &ConvShape, x: &[f32], grad: &[f32]) -> Vec<f32> {
    let mut of_filters: Option<FlexTensor> = None;
    for block in Blocks::of(shape) {
        let grad = block.points::<4, Spread>(block.output(shape), grad); // [T, 36, C_out]
        let patches = block.points::<6, Patch>(block.input(shape), x).permute(&[1, 0, 2]); // [36, T, C_in]
        let product = Flex::float_matmul(grad.permute(&[1, 2, 0]), patches); // [36, C_out, C_in]
        of_filters = Some(match of_filters {
            Some(sum) => Flex::float_add(sum, product),
            None => product,
        });
    }
    of_filters
        .map_or_else(|| vec![0.0; shape.channels.iter().product::<usize>() * 9], |sum| weights(shape, values(&sum)))
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

/// Rows of tiles that are worked on together: those of several images, or some of one.
#[derive(Debug, Clone, Copy)]
struct Blocks {
    /// First row of tiles, counted through the batch.
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
        let tiles = tiles(shape.grid);
        let (rows, step) = (shape.batch * tiles[0], (TILES_AT_A_TIME / tiles[1].max(1)).max(1));
        (0..rows).step_by(step).map(move |first| Self { first, count: step.min(rows - first), tiles })
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
        let mut points = vec![0.0; self.count * row];
        let n = points.len();
        for_each(points.par_chunks_mut(row), n, |task, points| {
            let (image, tile_row) = ((self.first + task) / down, (self.first + task) % down);
            let size = planes.channels * planes.image[0] * planes.image[1];
            let image = &images[image * size..][..size];
            vectorized(ToPoints::<N, M> { planes, image, tile_row, across, points, map: PhantomData });
        });
        tensor(points, Shape::from([self.count * across, POINTS, planes.channels]))
    }
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
                        let to = &mut points[(row * 6 + column) * channels + first..];
                        match to.first_chunk_mut::<LANES>() {
                            Some(to) if lanes == LANES => *to = *value,
                            _ => to[..lanes].copy_from_slice(&value[..lanes]),
                        }
                    }
                }
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
                let from = &self.points[point * self.stride + first..];
                match from.first_chunk::<LANES>() {
                    Some(from) if lanes == LANES => *to = *from,
                    _ => to[..lanes].copy_from_slice(&from[..lanes]),
                }
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
