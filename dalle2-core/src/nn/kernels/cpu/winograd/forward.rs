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

use macerator::{Scalar, Simd, WithSimd};
use rayon::prelude::*;

use super::super::conv::ConvShape;
use super::super::parallel::vectorized;
use super::super::raw::{PANEL, ROWS, Row, Rows, Unwritten, load, product, store};
use super::super::scratch::Scratch;
use super::maps::{LANES, Patch, Tile, ToFilter, square};
use super::panel::{Grid, Panel, read_patches};
use super::{POINTS, TILE};

/// Input channels that are worked on together.
const BLOCK: usize = 64;
/// Most output channels of a task.
const OUTPUTS: usize = 4 * ROWS;
/// What the number of tasks is brought near a multiple of, so that threads end together.
const EVEN: usize = 4;
/// Most panels of a group: a task keeps their products, which must fit the second cache beside the filters of a block.
const PANELS: usize = 4;

/// Memory of the three steps.
static POINTS_OF_PANELS: Scratch<Row> = Scratch::new();
static FILTERS: Scratch<f32> = Scratch::new();
static PRODUCTS: Scratch<Row> = Scratch::new();

/// The convolution of `x` `[B, C_in, H, W]` with `weight` `[C_out, C_in, 3, 3]`, plus `bias` `[C_out]` if there is one.
pub fn forward(shape: &ConvShape, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let [from, to] = shape.channels;
    let [height, width] = shape.grid;
    let mut y = Unwritten::new(shape.batch * to * height, width);
    let outputs = outputs(to);
    let panels = Panel::cover(shape);
    // Groups of about the same size.
    let group = panels.len().div_ceil(panels.len().div_ceil(PANELS).max(1)).max(1);
    for panels in panels.chunks(group) {
        POINTS_OF_PANELS.with(panels.len() * POINTS * (from + from.div_ceil(BLOCK)), |points| {
            let tasks = split_blocks(points, from, panels.len());
            tasks.into_par_iter().enumerate().for_each(|(task, points)| {
                let first = task / panels.len() * BLOCK;
                vectorized(ToPoints { shape, x, first, panel: &panels[task % panels.len()], points });
            });
            let mut planes: Vec<Vec<Rows<'_>>> = (0..to.div_ceil(outputs)).map(|_| Vec::new()).collect();
            for image in y.rows().chunks(to * height) {
                for (planes, of_task) in planes.iter_mut().zip(image.chunks(outputs * height)) {
                    planes.push(of_task);
                }
            }
            planes.into_par_iter().enumerate().for_each(|(task, planes)| {
                let (first, count) = (task * outputs, outputs.min(to - task * outputs));
                FILTERS.with(POINTS * (count * BLOCK + LANES), |filters| {
                    PRODUCTS.with(panels.len() * POINTS * (count + 1), |products| {
                        let channels = [first, count];
                        vectorized(Outputs {
                            shape,
                            panels,
                            points,
                            weight,
                            bias,
                            channels,
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

/// Cuts the points `[blocks, panels, 36, channels of the block]` into the slices of a block and panel.
fn split_blocks(mut points: &mut [Row], channels: usize, panels: usize) -> Vec<&mut [Row]> {
    let mut slices = Vec::new();
    for first in (0..channels).step_by(BLOCK) {
        let size = POINTS * (BLOCK.min(channels - first) + 1);
        for _ in 0..panels {
            let (slice, rest) = points.split_at_mut(size);
            slices.push(slice);
            points = rest;
        }
    }
    slices
}

/// Patches of some channels to their points.
struct ToPoints<'a> {
    shape: &'a ConvShape,
    x: &'a [f32],
    /// First channel of the block.
    first: usize,
    panel: &'a Panel,
    /// `[36, channels of the block]`
    points: &'a mut [Row],
}

impl WithSimd for ToPoints<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        let [channels, _] = self.shape.channels;
        let plane = self.shape.image[0] * self.shape.image[1];
        let stride = self.points.len() / POINTS;
        let count = stride - 1;
        let mut patch: Grid<6> = [[[0.0; PANEL]; 6]; 6];
        for channel in 0..count {
            for run in &self.panel.runs {
                let image = &self.x[(run.image * channels + self.first + channel) * plane..][..plane];
                read_patches(self.shape.image, self.shape.padding, image, run, &mut patch);
            }
            for first in (0..self.panel.count).step_by(S::lanes32()) {
                square::<S, 6, 6, Patch>(
                    |row, column| load(&patch[row][column][first..]),
                    |row, column, value| {
                        store(value, &mut self.points[(row * 6 + column) * stride + channel][first..]);
                    },
                );
            }
        }
    }
}

/// Some output channels of some panels.
struct Outputs<'a> {
    shape: &'a ConvShape,
    panels: &'a [Panel],
    /// `[blocks, panels, 36, channels of the block]`
    points: &'a [Row],
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    /// The first one, and how many.
    channels: [usize; 2],
    /// The planes of these channels in each image.
    planes: Vec<Rows<'a>>,
    /// Memory for a block of filters, `[36, channels, channels of the block]`.
    filters: &'a mut [f32],
    /// Memory for the products, `[panels, 36, channels]`.
    products: &'a mut [Row],
}

impl WithSimd for Outputs<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self) {
        let ([from, _], [first, count]) = (self.shape.channels, self.channels);
        let rows = count + 1;
        let (filters, products) = (self.filters, self.products);
        let mut points = self.points;
        for block in (0..from).step_by(BLOCK) {
            let channels = BLOCK.min(from - block);
            let stride = count * channels + LANES;
            for output in 0..count {
                let weight = &self.weight[((first + output) * from + block) * 9..][..channels * 9];
                to_filters::<S>(weight, &mut filters[output * channels..], stride);
            }
            for (panel, products) in self.panels.iter().zip(products.chunks_exact_mut(POINTS * rows)) {
                let (of_panel, rest) = points.split_at(POINTS * (channels + 1));
                points = rest;
                for point in 0..POINTS {
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
        for (panel, products) in self.panels.iter().zip(products.chunks_exact(POINTS * rows)) {
            for output in 0..count {
                let bias = self.bias.map_or(0.0, |bias| bias[first + output]);
                let tiles = to_tiles::<S>(products, output, rows, bias);
                write_tiles(self.shape, &tiles, panel, output, &mut self.planes);
            }
        }
    }
}

/// The weights `[C, 3, 3]` of one output channel to the points, `points[p · stride + c]`.
#[inline(always)]
fn to_filters<S: Simd>(weight: &[f32], points: &mut [f32], stride: usize) {
    for (group, weight) in weight.chunks(9 * LANES).enumerate() {
        let lanes = weight.len() / 9;
        let mut taps = [[[0.0; LANES]; 3]; 3];
        for (tap, values) in taps.as_flattened_mut().iter_mut().enumerate() {
            if lanes == LANES {
                for lane in 0..LANES {
                    values[lane] = weight[lane * 9 + tap];
                }
            } else {
                for lane in 0..lanes {
                    values[lane] = weight[lane * 9 + tap];
                }
            }
        }
        for first in (0..LANES).step_by(S::lanes32()) {
            square::<S, 3, 6, ToFilter>(
                |row, column| load(&taps[row][column][first..]),
                |row, column, value| {
                    // Whole vectors: what is too much belongs to the next channel, which comes later, or to no one.
                    store(value, &mut points[(row * 6 + column) * stride + group * LANES + first..]);
                },
            );
        }
    }
}

/// The output tiles of one channel, from the products `[36, outputs]` of a panel.
#[inline(always)]
fn to_tiles<S: Simd>(products: &[Row], output: usize, outputs: usize, bias: f32) -> Grid<4> {
    let mut tiles: Grid<4> = [[[0.0; PANEL]; 4]; 4];
    let bias = bias.splat::<S>();
    for first in (0..PANEL).step_by(S::lanes32()) {
        square::<S, 6, 4, Tile>(
            |row, column| load(&products[(row * 6 + column) * outputs + output][first..]),
            |row, column, value| store(value + bias, &mut tiles[row][column][first..]),
        );
    }
    tiles
}

/// Writes the tiles of a panel into the planes of one channel.
#[inline(always)]
fn write_tiles(shape: &ConvShape, tiles: &Grid<4>, panel: &Panel, output: usize, planes: &mut [Rows<'_>]) {
    let [height, width] = shape.grid;
    for run in &panel.runs {
        let plane = &mut planes[run.image];
        for (row, tiles) in tiles.iter().enumerate().take(height - run.at[0]) {
            let length = (run.count * TILE).min(width - run.at[1]);
            let mut line = [0.0; PANEL * TILE];
            match run.count {
                PANEL => gather::<PANEL>(tiles, run.lane, &mut line),
                16 => gather::<16>(tiles, run.lane, &mut line),
                8 => gather::<8>(tiles, run.lane, &mut line),
                4 => gather::<4>(tiles, run.lane, &mut line),
                2 => gather::<2>(tiles, run.lane, &mut line),
                _ => {
                    for tile in 0..run.count {
                        for column in 0..TILE {
                            line[tile * TILE + column] = tiles[column][run.lane + tile];
                        }
                    }
                }
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
}

/// The transpose of the first four columns of [`spread`].
#[inline(always)]
fn gather<const N: usize>(tiles: &[Row; 4], lane: usize, line: &mut [f32; PANEL * TILE]) {
    let columns: [&[f32]; 4] = std::array::from_fn(|column| &tiles[column][lane..lane + N]);
    for tile in 0..N {
        for column in 0..TILE {
            line[tile * TILE + column] = columns[column][tile];
        }
    }
}
