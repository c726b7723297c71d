//! The gradient of the weights, by F(4 × 4, 3 × 3).
//!
//! For each of the 36 points it is a product of the transformed gradient of the result, `[C_out, tiles]`, with the
//! transformed input, `[tiles, C_in]`. The former is vectorised over the tiles of a panel, the latter over channels, so
//! that both lie as the register tile reads them. Some panels at a time are transformed and their products added up.

use macerator::{Simd, WithSimd};
use rayon::prelude::*;

use super::super::conv::ConvShape;
use super::super::parallel::vectorized;
use super::super::planes::Planes;
use super::super::raw::{PANEL, Row, load, product, store};
use super::super::scratch::Scratch;
use super::maps::{FromFilter, LANES, Lane, Patch, Spread, along, square};
use super::panel::{Columns, Grid, LONGEST, Panel, Run, read_patches};

/// Side of an output tile.
const TILE: usize = 4;
/// Points of the transformed domain.
const POINTS: usize = 36;

/// Most panels of a group: the tiles of a point and of a panel of channels must fit the first cache.
const PANELS: usize = 8;

/// Memory of the three factors: `[36, C_out, tiles]`, `[panels of C_in, 36, tiles]` and `[panels of C_in, 36, C_out]`.
static OF_RESULT: Scratch<f32> = Scratch::new();
static OF_INPUT: Scratch<Row> = Scratch::new();
static OF_FILTERS: Scratch<Row> = Scratch::new();

/// The gradient of the weights `[C_out, C_in, 3, 3]`, given the input and the gradient of the result.
pub fn gradient(shape: &ConvShape, x: &[f32], grad: &[f32]) -> Vec<f32> {
    let [from, to] = shape.channels;
    let of_channels = from.div_ceil(PANEL);
    let panels = Panel::cover(shape.batch, shape.grid, TILE);
    // Groups of about the same size.
    let group = panels.len().div_ceil(panels.len().div_ceil(PANELS).max(1)).max(1);
    let tiles = group * PANEL;
    // A little more for each point than it needs. Without it the 36 places that a transform writes would lie a multiple
    // of 4 KiB apart and drive each other out of the first cache.
    let (of_result_point, of_input_point) = (to * tiles + LANES, tiles + 1);
    let mut weight = vec![0.0; to * from * 9];
    OF_RESULT.with(POINTS * of_result_point, |of_result| {
        OF_INPUT.with(of_channels * POINTS * of_input_point, |of_input| {
            OF_FILTERS.with(of_channels * POINTS * to, |of_filters| {
                for (number, panels) in panels.chunks(group).enumerate() {
                    by_point(of_result, of_result_point, tiles).into_par_iter().enumerate().for_each(
                        |(channel, points)| {
                            vectorized(OfResult { shape, grad, channel, panels, points });
                        },
                    );
                    let of_channels = of_input.chunks_mut(POINTS * of_input_point);
                    let tasks: Vec<_> =
                        of_channels.flat_map(|points| by_point(points, of_input_point, PANEL)).collect();
                    tasks.into_par_iter().enumerate().for_each(|(task, points)| {
                        let (channels, panel) = (task / group, task % group);
                        if let Some(panel) = panels.get(panel) {
                            vectorized(OfInput { shape, x, first: channels * PANEL, panel, points });
                        }
                    });
                    let count = panels.iter().map(|panel| panel.count).sum::<usize>();
                    of_filters.par_chunks_mut(to).enumerate().for_each(|(task, products)| {
                        let point = task % POINTS;
                        vectorized(Products {
                            columns: PANEL.min(from - task / POINTS * PANEL),
                            of_result: &of_result[point * of_result_point..],
                            tiles,
                            of_input: &of_input[task * of_input_point..][..count],
                            products,
                            accumulate: number > 0,
                        });
                    });
                }
                weight.par_chunks_mut(from * 9).enumerate().for_each(|(output, weight)| {
                    vectorized(ToWeights { of_filters: &of_filters[output..], to, weight });
                });
            });
        });
    });
    weight
}

/// Cuts the values of each of the 36 points, `of_point` of them, into whole pieces, and puts those of a place together.
fn by_point<T>(points: &mut [T], of_point: usize, piece: usize) -> Vec<Vec<&mut [T]>> {
    let mut pieces: Vec<_> = (0..of_point / piece).map(|_| Vec::with_capacity(POINTS)).collect();
    for of_point in points.chunks_mut(of_point) {
        for (pieces, piece) in pieces.iter_mut().zip(of_point.chunks_mut(piece)) {
            pieces.push(piece);
        }
    }
    pieces
}

/// The gradient of one output channel at the points.
struct OfResult<'a> {
    shape: &'a ConvShape,
    grad: &'a [f32],
    channel: usize,
    panels: &'a [Panel],
    /// The tiles at each of the 36 points.
    points: Vec<&'a mut [f32]>,
}

impl WithSimd for OfResult<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self) {
        let (channels, planes) = (self.shape.channels[1], Planes::kept(self.grad, self.shape.grid));
        let mut tile: Grid<4> = [[[0.0; PANEL]; 4]; 4];
        for (number, panel) in self.panels.iter().enumerate() {
            for run in &panel.runs {
                let image = planes.plane(run.image * channels + self.channel);
                read_patches::<TILE, 4>(&image, [0, 0], run, &mut tile);
            }
            for first in (0..panel.count).step_by(S::lanes32()) {
                square::<S, 4, 6, Spread>(
                    |row, column| load(&tile[row][column][first..]),
                    |row, column, value| store(value, &mut self.points[row * 6 + column][number * PANEL + first..]),
                );
            }
        }
    }
}

/// The patches of a panel of tiles at the points, for a panel of channels.
struct OfInput<'a> {
    shape: &'a ConvShape,
    x: &'a [f32],
    /// First channel.
    first: usize,
    panel: &'a Panel,
    /// The tiles at each of the 36 points.
    points: Vec<&'a mut [Row]>,
}

/// A row of pixels of some channels.
type Line = [Lane; LONGEST];

impl WithSimd for OfInput<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self) {
        let channels = self.shape.channels[0];
        let plane = self.shape.image[0] * self.shape.image[1];
        let mut lines = vec![[[0.0; LANES]; LONGEST]; 6];
        let mut half = vec![[[0.0; LANES]; 6]; LONGEST];
        for first in (self.first..channels.min(self.first + PANEL)).step_by(LANES) {
            let lanes = first - self.first..first - self.first + LANES;
            for run in &self.panel.runs {
                let images = &self.x[(run.image * channels + first) * plane..(run.image + 1) * channels * plane];
                let length = read_lines(self.shape, images, run, &mut lines);
                for (column, half) in half.iter_mut().enumerate().take(length) {
                    along::<S, 6, 6, Patch>(std::array::from_fn(|row| &lines[row][column]), half);
                }
                for tile in 0..run.count {
                    for (row, points) in self.points.chunks_exact_mut(6).enumerate() {
                        let patch = std::array::from_fn(|i| &half[tile * TILE + i][row]);
                        let mut values = [[0.0; LANES]; 6];
                        along::<S, 6, 6, Patch>(patch, &mut values);
                        for (point, value) in points.iter_mut().zip(values) {
                            point[run.lane + tile][lanes.clone()].copy_from_slice(&value);
                        }
                    }
                }
            }
        }
    }
}

/// The six rows of pixels that a run reads, of the first channels of `images`, zero outside them; returns their length.
#[inline(always)]
fn read_lines(shape: &ConvShape, images: &[f32], run: &Run, lines: &mut [Line]) -> usize {
    let [height, width] = shape.image;
    let Columns { inside, offset, length } = Columns::of::<TILE, 6>(run, width, shape.padding[1]);
    for (row, line) in lines.iter_mut().enumerate() {
        let y = (run.at[0] + row).checked_sub(shape.padding[0]).filter(|y| *y < height);
        if y.is_none() || inside.len() < length {
            line[..length].fill([0.0; LANES]);
        }
        let Some(y) = y else { continue };
        let line = &mut line[offset..offset + inside.len()];
        for (lane, image) in images.chunks_exact(height * width).take(LANES).enumerate() {
            let from = &image[y * width..][..width][inside.clone()];
            line.iter_mut().zip(from).for_each(|(to, from)| to[lane] = *from);
        }
    }
    length
}

/// The product of a point, for a panel of input channels.
struct Products<'a> {
    columns: usize,
    /// `[C_out, tiles]`
    of_result: &'a [f32],
    tiles: usize,
    of_input: &'a [Row],
    products: &'a mut [Row],
    accumulate: bool,
}

impl WithSimd for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        let size = [self.products.len(), self.columns];
        let to = (self.products.as_flattened_mut(), PANEL);
        product::<S, false>(size, (self.of_result, self.tiles), self.of_input, to, self.accumulate);
    }
}

/// The gradient of the filters of one output channel to that of its weights.
struct ToWeights<'a> {
    /// That of a panel and point every `to` rows.
    of_filters: &'a [Row],
    to: usize,
    /// `[C_in, 9]`
    weight: &'a mut [f32],
}

impl WithSimd for ToWeights<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        for (number, weight) in self.weight.chunks_mut(LANES * 9).enumerate() {
            let (panel, half) = (number * LANES / PANEL, number % (PANEL / LANES));
            let mut weights = [[[0.0; LANES]; 3]; 3];
            for first in (0..LANES).step_by(S::lanes32()) {
                square::<S, 6, 3, FromFilter>(
                    |row, column| {
                        load(&self.of_filters[(panel * POINTS + row * 6 + column) * self.to][half * LANES + first..])
                    },
                    |row, column, value| store(value, &mut weights[row][column][first..]),
                );
            }
            for (lane, to) in weight.chunks_exact_mut(9).enumerate() {
                for (tap, to) in to.iter_mut().enumerate() {
                    *to = weights[tap / 3][tap % 3][lane];
                }
            }
        }
    }
}
