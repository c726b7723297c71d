//! The weight gradient by F(4 × 4, 3 × 3).
//!
//! For each of the 36 points it is a product of the transformed output gradient, `[C_out, tiles]`, with the transformed
//! input, `[tiles, C_in]`. The former is vectorised over the tiles of a panel, the latter over channels, which gives the
//! layouts of the micro-kernel. Groups of panels are transformed one after the other and their products accumulated.

use macerator::{Simd, WithSimd};
use rayon::prelude::*;

use super::super::conv::ConvShape;
use super::super::parallel::vectorized;
use super::super::planes::Planes;
use super::super::raw::{PANEL, Row, load, product, store};
use super::super::scratch::Scratch;
use super::tiles::{Columns, Grid, MAX_LINE, TilePanel, TileRun, read_input_tiles};
use super::transforms::{
    FilterTransformTransposed, InputTransform, LANES, Lane, OutputTransformTransposed, transform_1d, transform_2d,
};

/// Side of an output tile.
const TILE: usize = 4;
/// Points of the transformed domain.
const POINTS: usize = 36;

/// Maximum number of panels per group: the tiles of one point and of one panel of channels must fit the first-level cache;
/// tuned with `cargo bench -p dalle2-kernels --bench ops`.
const MAX_GROUP_PANELS: usize = 8;

/// Buffers of the three factors: `[36, C_out, tiles]`, `[panels of C_in, 36, tiles]` and `[panels of C_in, 36, C_out]`.
static GRAD_OUTPUT_BUFFER: Scratch<f32> = Scratch::new();
static INPUT_BUFFER: Scratch<Row> = Scratch::new();
static GRAD_FILTER_BUFFER: Scratch<Row> = Scratch::new();

/// The weight gradient `[C_out, C_in, 3, 3]` from the input and the output gradient.
pub(crate) fn grad_weight(shape: &ConvShape, x: &[f32], grad: &[f32]) -> Vec<f32> {
    let [from, to] = shape.channels;
    let channel_panels = from.div_ceil(PANEL);
    let panels = TilePanel::cover(shape.batch, shape.grid, TILE);
    // Groups of similar size.
    let group = panels.len().div_ceil(panels.len().div_ceil(MAX_GROUP_PANELS).max(1)).max(1);
    let tiles = group * PANEL;
    // Padding per point: without it the 36 rows of a transform would be a multiple of 4 KiB apart and evict each other
    // from the first-level cache.
    let (grad_output_stride, input_stride) = (to * tiles + LANES, tiles + 1);
    let mut weight = vec![0.0; to * from * 9];
    GRAD_OUTPUT_BUFFER.with(POINTS * grad_output_stride, |grad_output| {
        INPUT_BUFFER.with(channel_panels * POINTS * input_stride, |input| {
            GRAD_FILTER_BUFFER.with(channel_panels * POINTS * to, |grad_filter| {
                for (number, panels) in panels.chunks(group).enumerate() {
                    by_point(grad_output, grad_output_stride, tiles).into_par_iter().enumerate().for_each(
                        |(channel, points)| {
                            vectorized(TransformGradOutput { shape, grad, channel, panels, points });
                        },
                    );
                    let channel_panels = input.chunks_mut(POINTS * input_stride);
                    let tasks: Vec<_> =
                        channel_panels.flat_map(|points| by_point(points, input_stride, PANEL)).collect();
                    tasks.into_par_iter().enumerate().for_each(|(task, points)| {
                        let (channels, panel) = (task / group, task % group);
                        if let Some(panel) = panels.get(panel) {
                            vectorized(TransformInput { shape, x, first: channels * PANEL, panel, points });
                        }
                    });
                    let count = panels.iter().map(|panel| panel.count).sum::<usize>();
                    grad_filter.par_chunks_mut(to).enumerate().for_each(|(task, products)| {
                        let point = task % POINTS;
                        vectorized(Products {
                            columns: PANEL.min(from - task / POINTS * PANEL),
                            grad_output: &grad_output[point * grad_output_stride..],
                            tiles,
                            input: &input[task * input_stride..][..count],
                            products,
                            accumulate: number > 0,
                        });
                    });
                }
                weight.par_chunks_mut(from * 9).enumerate().for_each(|(output, weight)| {
                    vectorized(InverseFilterTransform { grad_filter: &grad_filter[output..], to, weight });
                });
            });
        });
    });
    weight
}

/// Splits the `point_len` elements of each of the 36 points into pieces and groups the pieces by position.
fn by_point<T>(points: &mut [T], point_len: usize, piece: usize) -> Vec<Vec<&mut [T]>> {
    let mut pieces: Vec<_> = (0..point_len / piece).map(|_| Vec::with_capacity(POINTS)).collect();
    for point_len in points.chunks_mut(point_len) {
        for (pieces, piece) in pieces.iter_mut().zip(point_len.chunks_mut(piece)) {
            pieces.push(piece);
        }
    }
    pieces
}

/// Transforms the output gradient of one output channel.
struct TransformGradOutput<'a> {
    shape: &'a ConvShape,
    grad: &'a [f32],
    channel: usize,
    panels: &'a [TilePanel],
    /// The tiles at each of the 36 points.
    points: Vec<&'a mut [f32]>,
}

impl WithSimd for TransformGradOutput<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self) {
        let (channels, planes) = (self.shape.channels[1], Planes::unchanged(self.grad, self.shape.grid));
        let mut tile: Grid<4> = [[[0.0; PANEL]; 4]; 4];
        for (number, panel) in self.panels.iter().enumerate() {
            for run in &panel.runs {
                let image = planes.plane(run.image * channels + self.channel);
                read_input_tiles::<TILE, 4>(&image, [0, 0], run, &mut tile);
            }
            for first in (0..panel.count).step_by(S::lanes32()) {
                transform_2d::<S, 4, 6, OutputTransformTransposed>(
                    |row, column| load(&tile[row][column][first..]),
                    |row, column, value| store(value, &mut self.points[row * 6 + column][number * PANEL + first..]),
                );
            }
        }
    }
}

/// Transforms the input tiles of a panel, for a panel of channels.
struct TransformInput<'a> {
    shape: &'a ConvShape,
    x: &'a [f32],
    /// First channel.
    first: usize,
    panel: &'a TilePanel,
    /// The tiles at each of the 36 points.
    points: Vec<&'a mut [Row]>,
}

/// A row of pixels of several channels.
type Line = [Lane; MAX_LINE];

impl WithSimd for TransformInput<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self) {
        let channels = self.shape.channels[0];
        let plane = self.shape.image[0] * self.shape.image[1];
        let mut lines = vec![[[0.0; LANES]; MAX_LINE]; 6];
        let mut half = vec![[[0.0; LANES]; 6]; MAX_LINE];
        for first in (self.first..channels.min(self.first + PANEL)).step_by(LANES) {
            let lanes = first - self.first..first - self.first + LANES;
            for run in &self.panel.runs {
                let images = &self.x[(run.image * channels + first) * plane..(run.image + 1) * channels * plane];
                let length = read_lines(self.shape, images, run, &mut lines);
                for (column, half) in half.iter_mut().enumerate().take(length) {
                    transform_1d::<S, 6, 6, InputTransform>(std::array::from_fn(|row| &lines[row][column]), half);
                }
                for tile in 0..run.count {
                    for (row, points) in self.points.chunks_exact_mut(6).enumerate() {
                        let patch = std::array::from_fn(|i| &half[tile * TILE + i][row]);
                        let mut values = [[0.0; LANES]; 6];
                        transform_1d::<S, 6, 6, InputTransform>(patch, &mut values);
                        for (point, value) in points.iter_mut().zip(values) {
                            point[run.lane + tile][lanes.clone()].copy_from_slice(&value);
                        }
                    }
                }
            }
        }
    }
}

/// Reads the six rows of pixels of a run for the first channels of `images`, zero in the padding; returns their length.
#[inline(always)]
fn read_lines(shape: &ConvShape, images: &[f32], run: &TileRun, lines: &mut [Line]) -> usize {
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

/// The product at one point for a panel of input channels.
struct Products<'a> {
    columns: usize,
    /// `[C_out, tiles]`
    grad_output: &'a [f32],
    tiles: usize,
    input: &'a [Row],
    products: &'a mut [Row],
    accumulate: bool,
}

impl WithSimd for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        let size = [self.products.len(), self.columns];
        let to = (self.products.as_flattened_mut(), PANEL);
        product::<S, false>(size, (self.grad_output, self.tiles), self.input, to, self.accumulate);
    }
}

/// Transforms the gradient of the transformed filters of one output channel to its weight gradient.
struct InverseFilterTransform<'a> {
    /// One row per panel and point, `to` rows apart.
    grad_filter: &'a [Row],
    to: usize,
    /// `[C_in, 9]`
    weight: &'a mut [f32],
}

impl WithSimd for InverseFilterTransform<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self) {
        for (number, weight) in self.weight.chunks_mut(LANES * 9).enumerate() {
            let (panel, half) = (number * LANES / PANEL, number % (PANEL / LANES));
            let mut weights = [[[0.0; LANES]; 3]; 3];
            for first in (0..LANES).step_by(S::lanes32()) {
                transform_2d::<S, 6, 3, FilterTransformTransposed>(
                    |row, column| {
                        load(&self.grad_filter[(panel * POINTS + row * 6 + column) * self.to][half * LANES + first..])
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
