//! The convolution itself.
//!
//! Tiles are numbered through the batch, row by row, and taken in panels of [`PANEL`]; everything between the image and
//! the result is vectorised over the tiles of a panel. Some panels at a time are brought to the points, by blocks of
//! input channels, into a buffer that the last cache holds. Then each task takes a few output channels through all of
//! it: it transforms their weights block by block, multiplies, and writes finished planes. Weights are transformed
//! anew for every group of panels, because the buffer for all would be four times as large as the weights, and
//! fetching it slower than making it.
//!
//! Matrices over points have a row more per point than they need. Without it the 36 rows of a transform would lie a
//! multiple of 4 KiB apart and drive each other out of the first cache.

use std::marker::PhantomData;

use macerator::{Scalar, Simd, WithSimd};
use rayon::prelude::*;

use super::super::conv::ConvShape;
use super::super::parallel::vectorized;
use super::super::planes::Planes;
use super::super::raw::{PANEL, ROWS, Row, Rows, SQUARE, Unwritten, fetch, load, product, store, transpose};
use super::super::scratch::Scratch;
use super::maps::{LANES, Size, square};
use super::panel::{Grid, LONGEST, Panel, Run, read_patches};

/// Input channels that are worked on together.
const BLOCK: usize = 64;
/// Most output channels of a task.
const OUTPUTS: usize = 4 * ROWS;
/// What the number of tasks is brought near a multiple of, so that threads end together.
const EVEN: usize = 4;
/// Most rows of products, of one output channel, that a group of panels has: a task keeps them, and they must fit the second
/// cache beside the filters of a block.
const GROUP: usize = 4 * 36;

/// Memory of the three steps.
static POINTS: Scratch<Row> = Scratch::new();
static FILTERS: Scratch<f32> = Scratch::new();
static PRODUCTS: Scratch<Row> = Scratch::new();

/// The convolution of `x` `[B, C_in, H, W]` with `weight` `[C_out, C_in, 3, 3]`, plus `bias` `[C_out]` and `residual`
/// `[B, C_out, H', W']` if there are such.
pub fn forward<M: Size<T, N>, const T: usize, const N: usize>(
    shape: &ConvShape,
    x: Planes<'_>,
    weight: &[f32],
    bias: Option<&[f32]>,
    residual: Option<Planes<'_>>,
) -> Vec<f32> {
    let [from, to] = shape.channels;
    let [height, width] = shape.grid;
    let mut y = Unwritten::new(shape.batch * to * height, width);
    let outputs = outputs(to);
    let panels = Panel::cover(shape.batch, shape.grid, T);
    // Groups of about the same size.
    let group = panels.len().div_ceil(panels.len().div_ceil(GROUP / (N * N)).max(1)).max(1);
    for panels in panels.chunks(group) {
        POINTS.with(panels.len() * N * N * (from + from.div_ceil(BLOCK)), |points| {
            let tasks = split_blocks(points, N * N, from, panels.len());
            tasks.into_par_iter().enumerate().for_each(|(task, points)| {
                let (first, panel) = (task / panels.len() * BLOCK, &panels[task % panels.len()]);
                vectorized(ToPoints::<M, T, N> { size: PhantomData, shape, x, first, panel, points });
            });
            let mut planes: Vec<Vec<Rows<'_>>> = (0..to.div_ceil(outputs)).map(|_| Vec::new()).collect();
            for image in y.rows().chunks(to * height) {
                for (planes, of_task) in planes.iter_mut().zip(image.chunks(outputs * height)) {
                    planes.push(of_task);
                }
            }
            planes.into_par_iter().enumerate().for_each(|(task, planes)| {
                let (first, count) = (task * outputs, outputs.min(to - task * outputs));
                FILTERS.with(N * N * (count * BLOCK + LANES), |filters| {
                    PRODUCTS.with(panels.len() * N * N * (count + 1), |products| {
                        vectorized(Outputs::<M, T, N> {
                            size: PhantomData,
                            shape,
                            panels,
                            points,
                            weight,
                            bias,
                            residual,
                            channels: [first, count],
                            planes,
                            filters,
                            products,
                        });
                    });
                });
            });
        });
    }
    y.finish()
}

/// Output channels of a task, of so many.
fn outputs(channels: usize) -> usize {
    let tasks = channels.div_ceil(OUTPUTS).next_multiple_of(EVEN);
    channels.div_ceil(tasks).next_multiple_of(ROWS)
}

/// Cuts `[blocks, panels, places, channels of the block]` into the slices of a block and panel.
fn split_blocks(mut points: &mut [Row], places: usize, channels: usize, panels: usize) -> Vec<&mut [Row]> {
    let mut slices = Vec::new();
    for first in (0..channels).step_by(BLOCK) {
        let size = places * (BLOCK.min(channels - first) + 1);
        for _ in 0..panels {
            let (slice, rest) = points.split_at_mut(size);
            slices.push(slice);
            points = rest;
        }
    }
    slices
}

/// Patches of some channels to their points.
struct ToPoints<'a, M, const T: usize, const N: usize> {
    size: PhantomData<M>,
    shape: &'a ConvShape,
    x: Planes<'a>,
    /// First channel of the block.
    first: usize,
    panel: &'a Panel,
    /// `[N · N, channels of the block]`
    points: &'a mut [Row],
}

impl<M: Size<T, N>, const T: usize, const N: usize> WithSimd for ToPoints<'_, M, T, N> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        let [channels, _] = self.shape.channels;
        let stride = self.points.len() / (N * N);
        let count = stride - 1;
        let mut patch: Grid<N> = [[[0.0; PANEL]; N]; N];
        for channel in 0..count {
            for run in &self.panel.runs {
                let image = self.x.plane(run.image * channels + self.first + channel);
                read_patches::<T, N>(&image, self.shape.padding, run, &mut patch);
            }
            for first in (0..self.panel.count).step_by(S::lanes32()) {
                square::<S, N, N, M::Patch>(
                    |row, column| load(&patch[row][column][first..]),
                    |row, column, value| {
                        store(value, &mut self.points[(row * N + column) * stride + channel][first..]);
                    },
                );
            }
        }
    }
}

/// Some output channels of some panels.
struct Outputs<'a, M, const T: usize, const N: usize> {
    size: PhantomData<M>,
    shape: &'a ConvShape,
    panels: &'a [Panel],
    /// `[blocks, panels, N · N, channels of the block]`
    points: &'a [Row],
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    residual: Option<Planes<'a>>,
    /// The first one, and how many.
    channels: [usize; 2],
    /// The planes of these channels in each image.
    planes: Vec<Rows<'a>>,
    /// Memory for a block of filters, `[N · N, channels, channels of the block]`.
    filters: &'a mut [f32],
    /// Memory for the products, `[panels, N · N, channels]`.
    products: &'a mut [Row],
}

impl<M: Size<T, N>, const T: usize, const N: usize> WithSimd for Outputs<'_, M, T, N> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self) {
        let ([from, to], [first, count]) = (self.shape.channels, self.channels);
        let rows = count + 1;
        let (filters, products) = (self.filters, self.products);
        let mut points = self.points;
        for block in (0..from).step_by(BLOCK) {
            let channels = BLOCK.min(from - block);
            let stride = count * channels + LANES;
            for output in 0..count {
                let at = |output: usize, block: usize| ((first + output) * from + block) * 9;
                // Pieces of rows far apart, which the processor does not expect.
                let next = if output + 1 < count { at(output + 1, block) } else { at(0, block + BLOCK) };
                fetch(self.weight, next, BLOCK * 9);
                let weight = &self.weight[at(output, block)..];
                to_filters::<S, M, T, N>(weight, channels, &mut filters[output * channels..], stride);
            }
            for (panel, products) in self.panels.iter().zip(products.chunks_exact_mut(N * N * rows)) {
                let (of_panel, rest) = points.split_at(N * N * (channels + 1));
                points = rest;
                for point in 0..N * N {
                    product::<S, true>(
                        [count, panel.count],
                        (&filters[point * stride..], channels),
                        &of_panel[point * (channels + 1)..][..channels],
                        (products[point * rows..][..count].as_flattened_mut(), PANEL),
                        block > 0,
                    );
                }
            }
        }
        for (panel, products) in self.panels.iter().zip(products.chunks_exact(N * N * rows)) {
            for output in 0..count {
                let bias = self.bias.map_or(0.0, |bias| bias[first + output]);
                let tiles = to_tiles::<S, M, T, N>(products, output, rows, bias);
                for run in &panel.runs {
                    let residual = self.residual.map(|planes| planes.plane(run.image * to + first + output));
                    write_tiles(self.shape, &tiles, run, output, residual, &mut self.planes[run.image]);
                }
            }
        }
    }
}

/// The weights `[C, 3, 3]` of one output channel, the first of `weight`, to the points, `points[p · stride + c]`.
#[inline(always)]
fn to_filters<S: Simd, M: Size<T, N>, const T: usize, const N: usize>(
    weight: &[f32],
    channels: usize,
    points: &mut [f32],
    stride: usize,
) {
    for first in (0..channels).step_by(LANES) {
        let (weight, lanes) = (&weight[first * 9..], LANES.min(channels - first));
        let mut taps = [[0.0; LANES]; SQUARE];
        // Whole rows of a square, of which nine columns are wanted.
        if weight.len() >= (LANES - 1) * 9 + SQUARE {
            transpose((weight, 9), (taps.as_flattened_mut(), LANES));
        } else {
            for (tap, values) in taps.iter_mut().enumerate().take(9) {
                for lane in 0..lanes {
                    values[lane] = weight[lane * 9 + tap];
                }
            }
        }
        for lane in (0..LANES).step_by(S::lanes32()) {
            square::<S, 3, N, M::ToFilter>(
                |row, column| load(&taps[row * 3 + column][lane..]),
                |row, column, value| {
                    // Whole vectors: what is too much belongs to the next channel, which comes later, or to no one.
                    store(value, &mut points[(row * N + column) * stride + first + lane..]);
                },
            );
        }
    }
}

/// The output tiles of one channel, from the products `[N · N, outputs]` of a panel.
#[inline(always)]
fn to_tiles<S: Simd, M: Size<T, N>, const T: usize, const N: usize>(
    products: &[Row],
    output: usize,
    outputs: usize,
    bias: f32,
) -> Grid<T> {
    let mut tiles: Grid<T> = [[[0.0; PANEL]; T]; T];
    let bias = bias.splat::<S>();
    for first in (0..PANEL).step_by(S::lanes32()) {
        square::<S, N, T, M::Tile>(
            |row, column| load(&products[(row * N + column) * outputs + output][first..]),
            |row, column, value| store(value + bias, &mut tiles[row][column][first..]),
        );
    }
    tiles
}

/// Writes the tiles of a run into the rows of one channel, plus the first plane of a residual.
#[inline(always)]
fn write_tiles<const T: usize>(
    shape: &ConvShape,
    tiles: &Grid<T>,
    run: &Run,
    output: usize,
    residual: Option<Planes<'_>>,
    plane: &mut Rows<'_>,
) {
    let [height, width] = shape.grid;
    let length = (run.count * T).min(width - run.at[1]);
    for (row, tiles) in tiles.iter().enumerate().take(height - run.at[0]) {
        let mut line = [0.0; LONGEST];
        match run.count {
            PANEL => gather::<PANEL, T>(tiles, run.lane, &mut line),
            16 => gather::<16, T>(tiles, run.lane, &mut line),
            8 => gather::<8, T>(tiles, run.lane, &mut line),
            4 => gather::<4, T>(tiles, run.lane, &mut line),
            2 => gather::<2, T>(tiles, run.lane, &mut line),
            _ => {
                for tile in 0..run.count {
                    for column in 0..T {
                        line[tile * T + column] = tiles[column][run.lane + tile];
                    }
                }
            }
        }
        if let Some(residual) = residual {
            residual.read(run.at[0] + row, run.at[1]..run.at[1] + length, |i, value| line[i] += value);
        }
        let at = [output * height + run.at[0] + row, run.at[1]];
        // Lengths that are known ahead need no call to copy.
        match length {
            64 => plane.write(at, &line[..64]),
            32 => plane.write(at, &line[..32]),
            16 => plane.write(at, &line[..16]),
            8 => plane.write(at, &line[..8]),
            _ => plane.write(at, &line[..length]),
        }
    }
}

/// The transpose of the first T columns of [`spread`](super::panel).
#[inline(always)]
fn gather<const TILES: usize, const T: usize>(tiles: &[Row; T], lane: usize, line: &mut [f32; LONGEST]) {
    let columns: [&[f32]; T] = std::array::from_fn(|column| &tiles[column][lane..lane + TILES]);
    for tile in 0..TILES {
        for column in 0..T {
            line[tile * T + column] = columns[column][tile];
        }
    }
}
