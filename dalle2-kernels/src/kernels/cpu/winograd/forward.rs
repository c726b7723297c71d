//! The convolution by input, filter and output transforms.
//!
//! All steps are vectorised over the tiles of a panel. A group of panels is transformed by blocks of input channels into a
//! buffer that the last-level cache holds. Then each task computes a few output channels for the group: it transforms
//! their filters block by block, multiplies, and writes complete planes. Filters are transformed again for every group,
//! because the buffer for all transformed filters would be four times the size of the weights and slower to read than to
//! recompute.
//!
//! Transformed matrices have one padding row per point. Without it the 36 rows of a transform would be a multiple of 4 KiB
//! apart and evict each other from the first-level cache.

use std::marker::PhantomData;

use macerator::{Scalar, Simd, WithSimd};
use rayon::prelude::*;

use super::super::conv::ConvShape;
use super::super::parallel::vectorized;
use super::super::planes::Planes;
use super::super::raw::{BLOCK_SIDE, PANEL, ROWS, Row, Rows, UninitRows, load, prefetch, product, store, transpose};
use super::super::scratch::Scratch;
use super::tiles::{Grid, MAX_LINE, TilePanel, TileRun, read_input_tiles};
use super::transforms::{LANES, TileSize, transform_2d};

/// Input channels per block. The four constants are tuned with `cargo bench -p dalle2-kernels --bench ops`.
const CHANNEL_BLOCK: usize = 64;
/// Maximum number of output channels per task.
const MAX_TASK_CHANNELS: usize = 4 * ROWS;
/// Preferred multiple of the number of tasks, so that threads finish together.
const TASK_MULTIPLE: usize = 4;
/// Maximum number of product rows per output channel in a group of panels, which the second-level cache must hold beside the
/// transformed filters of a block.
const MAX_PRODUCT_ROWS: usize = 4 * 36;

/// Buffers of the three steps.
static INPUT_BUFFER: Scratch<Row> = Scratch::new();
static FILTER_BUFFER: Scratch<f32> = Scratch::new();
static PRODUCT_BUFFER: Scratch<Row> = Scratch::new();

/// The convolution of `x` `[B, C_in, H, W]` with `weight` `[C_out, C_in, 3, 3]`, plus `bias` `[C_out]` and
/// `residual` `[B, C_out, H', W']` if given.
pub(crate) fn forward<M: TileSize<T, N>, const T: usize, const N: usize>(
    shape: &ConvShape,
    x: Planes<'_>,
    weight: &[f32],
    bias: Option<&[f32]>,
    residual: Option<Planes<'_>>,
) -> Vec<f32> {
    let [from, to] = shape.channels;
    let [height, width] = shape.grid;
    let mut y = UninitRows::new(shape.batch * to * height, width);
    let outputs = channels_per_task(to);
    let panels = TilePanel::cover(shape.batch, shape.grid, T);
    // Groups of similar size.
    let group = panels.len().div_ceil(panels.len().div_ceil(MAX_PRODUCT_ROWS / (N * N)).max(1)).max(1);
    for panels in panels.chunks(group) {
        INPUT_BUFFER.with(panels.len() * N * N * (from + from.div_ceil(CHANNEL_BLOCK)), |points| {
            let tasks = split_blocks(points, N * N, from, panels.len());
            tasks.into_par_iter().enumerate().for_each(|(task, points)| {
                let (first, panel) = (task / panels.len() * CHANNEL_BLOCK, &panels[task % panels.len()]);
                vectorized(TransformInput::<M, T, N> { size: PhantomData, shape, x, first, panel, points });
            });
            let mut planes: Vec<Vec<Rows<'_>>> = (0..to.div_ceil(outputs)).map(|_| Vec::new()).collect();
            for image in y.rows().chunks(to * height) {
                for (planes, task_rows) in planes.iter_mut().zip(image.chunks(outputs * height)) {
                    planes.push(task_rows);
                }
            }
            planes.into_par_iter().enumerate().for_each(|(task, planes)| {
                let (first, count) = (task * outputs, outputs.min(to - task * outputs));
                FILTER_BUFFER.with(N * N * (count * CHANNEL_BLOCK + LANES), |filters| {
                    PRODUCT_BUFFER.with(panels.len() * N * N * (count + 1), |products| {
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

/// Number of output channels per task.
fn channels_per_task(channels: usize) -> usize {
    let tasks = channels.div_ceil(MAX_TASK_CHANNELS).next_multiple_of(TASK_MULTIPLE);
    channels.div_ceil(tasks).next_multiple_of(ROWS)
}

/// Splits `[blocks, panels, points, channels of the block]` into one slice per block and panel.
fn split_blocks(mut points: &mut [Row], places: usize, channels: usize, panels: usize) -> Vec<&mut [Row]> {
    let mut slices = Vec::new();
    for first in (0..channels).step_by(CHANNEL_BLOCK) {
        let size = places * (CHANNEL_BLOCK.min(channels - first) + 1);
        for _ in 0..panels {
            let (slice, rest) = points.split_at_mut(size);
            slices.push(slice);
            points = rest;
        }
    }
    slices
}

/// The input transform of a block of channels.
struct TransformInput<'a, M, const T: usize, const N: usize> {
    size: PhantomData<M>,
    shape: &'a ConvShape,
    x: Planes<'a>,
    /// First channel of the block.
    first: usize,
    panel: &'a TilePanel,
    /// `[N · N, channels of the block]`
    points: &'a mut [Row],
}

impl<M: TileSize<T, N>, const T: usize, const N: usize> WithSimd for TransformInput<'_, M, T, N> {
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
                read_input_tiles::<T, N>(&image, self.shape.padding, run, &mut patch);
            }
            for first in (0..self.panel.count).step_by(S::lanes32()) {
                transform_2d::<S, N, N, M::Input>(
                    |row, column| load(&patch[row][column][first..]),
                    |row, column, value| {
                        store(value, &mut self.points[(row * N + column) * stride + channel][first..]);
                    },
                );
            }
        }
    }
}

/// Computes a range of output channels of a group of panels.
struct Outputs<'a, M, const T: usize, const N: usize> {
    size: PhantomData<M>,
    shape: &'a ConvShape,
    panels: &'a [TilePanel],
    /// `[blocks, panels, N · N, channels of the block]`
    points: &'a [Row],
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    residual: Option<Planes<'a>>,
    /// First output channel and number of output channels.
    channels: [usize; 2],
    /// The planes of these channels in each image.
    planes: Vec<Rows<'a>>,
    /// Buffer for a block of transformed filters, `[N · N, channels, channels of the block]`.
    filters: &'a mut [f32],
    /// Buffer for the products, `[panels, N · N, channels]`.
    products: &'a mut [Row],
}

impl<M: TileSize<T, N>, const T: usize, const N: usize> WithSimd for Outputs<'_, M, T, N> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self) {
        let ([from, to], [first, count]) = (self.shape.channels, self.channels);
        let rows = count + 1;
        let (filters, products) = (self.filters, self.products);
        let mut points = self.points;
        for block in (0..from).step_by(CHANNEL_BLOCK) {
            let channels = CHANNEL_BLOCK.min(from - block);
            let stride = count * channels + LANES;
            for output in 0..count {
                let at = |output: usize, block: usize| ((first + output) * from + block) * 9;
                // The hardware prefetcher does not follow rows that are far apart.
                let next = if output + 1 < count { at(output + 1, block) } else { at(0, block + CHANNEL_BLOCK) };
                prefetch(self.weight, next, CHANNEL_BLOCK * 9);
                let weight = &self.weight[at(output, block)..];
                transform_filters::<S, M, T, N>(weight, channels, &mut filters[output * channels..], stride);
            }
            for (panel, products) in self.panels.iter().zip(products.chunks_exact_mut(N * N * rows)) {
                let (panel_points, rest) = points.split_at(N * N * (channels + 1));
                points = rest;
                for point in 0..N * N {
                    product::<S, true>(
                        [count, panel.count],
                        (&filters[point * stride..], channels),
                        &panel_points[point * (channels + 1)..][..channels],
                        (products[point * rows..][..count].as_flattened_mut(), PANEL),
                        block > 0,
                    );
                }
            }
        }
        for (panel, products) in self.panels.iter().zip(products.chunks_exact(N * N * rows)) {
            for output in 0..count {
                let bias = self.bias.map_or(0.0, |bias| bias[first + output]);
                let tiles = transform_output::<S, M, T, N>(products, output, rows, bias);
                for run in &panel.runs {
                    let residual = self.residual.map(|planes| planes.plane(run.image * to + first + output));
                    write_tiles(self.shape, &tiles, run, output, residual, &mut self.planes[run.image]);
                }
            }
        }
    }
}

/// Transforms the filters `[C, 3, 3]` of one output channel to `points[p · stride + c]`.
#[inline(always)]
fn transform_filters<S: Simd, M: TileSize<T, N>, const T: usize, const N: usize>(
    weight: &[f32],
    channels: usize,
    points: &mut [f32],
    stride: usize,
) {
    for first in (0..channels).step_by(LANES) {
        let (weight, lanes) = (&weight[first * 9..], LANES.min(channels - first));
        let mut taps = [[0.0; LANES]; BLOCK_SIDE];
        // A transpose of a full block; only its first nine columns are used.
        if weight.len() >= (LANES - 1) * 9 + BLOCK_SIDE {
            transpose((weight, 9), (taps.as_flattened_mut(), LANES));
        } else {
            for (tap, values) in taps.iter_mut().enumerate().take(9) {
                for lane in 0..lanes {
                    values[lane] = weight[lane * 9 + tap];
                }
            }
        }
        for lane in (0..LANES).step_by(S::lanes32()) {
            transform_2d::<S, 3, N, M::Filter>(
                |row, column| load(&taps[row * 3 + column][lane..]),
                |row, column, value| {
                    // Full vectors: excess lanes are overwritten by the next output channel or are padding.
                    store(value, &mut points[(row * N + column) * stride + first + lane..]);
                },
            );
        }
    }
}

/// The output transform of one channel of the products `[N · N, outputs]` of a panel.
#[inline(always)]
fn transform_output<S: Simd, M: TileSize<T, N>, const T: usize, const N: usize>(
    products: &[Row],
    output: usize,
    outputs: usize,
    bias: f32,
) -> Grid<T> {
    let mut tiles: Grid<T> = [[[0.0; PANEL]; T]; T];
    let bias = bias.splat::<S>();
    for first in (0..PANEL).step_by(S::lanes32()) {
        transform_2d::<S, N, T, M::Output>(
            |row, column| load(&products[(row * N + column) * outputs + output][first..]),
            |row, column, value| store(value + bias, &mut tiles[row][column][first..]),
        );
    }
    tiles
}

/// Writes the tiles of a run to the rows of one channel, plus the first plane of a residual.
#[inline(always)]
fn write_tiles<const T: usize>(
    shape: &ConvShape,
    tiles: &Grid<T>,
    run: &TileRun,
    output: usize,
    residual: Option<Planes<'_>>,
    plane: &mut Rows<'_>,
) {
    let [height, width] = shape.grid;
    let length = (run.count * T).min(width - run.at[1]);
    for (row, tiles) in tiles.iter().enumerate().take(height - run.at[0]) {
        let mut line = [0.0; MAX_LINE];
        match run.count {
            PANEL => interleave::<PANEL, T>(tiles, run.lane, &mut line),
            16 => interleave::<16, T>(tiles, run.lane, &mut line),
            8 => interleave::<8, T>(tiles, run.lane, &mut line),
            4 => interleave::<4, T>(tiles, run.lane, &mut line),
            2 => interleave::<2, T>(tiles, run.lane, &mut line),
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
        // Constant lengths avoid a call to memcpy.
        match length {
            64 => plane.write(at, &line[..64]),
            32 => plane.write(at, &line[..32]),
            16 => plane.write(at, &line[..16]),
            8 => plane.write(at, &line[..8]),
            _ => plane.write(at, &line[..length]),
        }
    }
}

/// Interleaves the columns of tiles to a line of pixels, the transpose of `deinterleave`.
#[inline(always)]
fn interleave<const TILES: usize, const T: usize>(tiles: &[Row; T], lane: usize, line: &mut [f32; MAX_LINE]) {
    let columns: [&[f32]; T] = std::array::from_fn(|column| &tiles[column][lane..lane + TILES]);
    for tile in 0..TILES {
        for column in 0..T {
            line[tile * T + column] = columns[column][tile];
        }
    }
}
