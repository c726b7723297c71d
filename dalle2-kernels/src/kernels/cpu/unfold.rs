//! im2col and col2im.
//!
//! The matrix of columns has one row per channel and tap of the kernel and one column per output pixel. The pixels of
//! several images are side by side, so that a convolution is one large matrix product.

use std::ops::Range;

use rayon::prelude::*;

use super::parallel::for_each;

/// Pixels per block: enough for an efficient product, few enough for the cache; tuned with
/// `cargo bench -p dalle2-kernels --bench ops`.
const BLOCK_PIXELS: usize = 2048;

/// Output pixels of one matrix of columns: a range of rows of one image, or all rows of several images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Block {
    /// Images of the batch.
    pub images: Range<usize>,
    /// Rows of each.
    pub rows: Range<usize>,
}

impl Block {
    /// Divides `batch` images of `height` by `width` pixels into blocks.
    pub(crate) fn cover(batch: usize, [height, width]: [usize; 2]) -> impl Iterator<Item = Self> {
        let images = (BLOCK_PIXELS / (height * width).max(1)).clamp(1, batch.max(1));
        let rows = if images > 1 { height } else { (BLOCK_PIXELS / width.max(1)).clamp(1, height.max(1)) };
        (0..batch).step_by(images).flat_map(move |image| {
            (0..height).step_by(rows).map(move |row| Self {
                images: image..(image + images).min(batch),
                rows: row..(row + rows).min(height),
            })
        })
    }

    /// Number of pixels, in images that are `width` wide.
    pub(crate) fn pixels(&self, width: usize) -> usize {
        self.images.len() * self.rows.len() * width
    }
}

/// The mapping from pixels of images `[C, H, W]` to columns.
#[derive(Debug, Clone)]
pub(crate) struct Unfold {
    /// C
    pub channels: usize,
    /// \[H, W\] of the images.
    pub image: [usize; 2],
    /// \[H', W'\] of the grid of columns.
    pub grid: [usize; 2],
    /// Pixels of the image per step on the grid.
    pub stride: [usize; 2],
    /// The taps: row and column of the image at position (0, 0) of the grid.
    pub taps: Vec<[isize; 2]>,
}

impl Unfold {
    /// Writes the columns of a block, `[channels · taps, pixels]`, reading zero outside the image.
    pub(crate) fn unfold(&self, images: &[f32], block: &Block, columns: &mut [f32]) {
        let pixels = block.pixels(self.grid[1]);
        let (plane, segment) = (self.image[0] * self.image[1], block.rows.len() * self.grid[1]);
        let n = columns.len();
        for_each(columns.par_chunks_mut(pixels), n, |row, columns| {
            let (channel, tap) = (row / self.taps.len(), self.taps[row % self.taps.len()]);
            for (image, to) in block.images.clone().zip(columns.chunks_exact_mut(segment)) {
                let from = &images[(image * self.channels + channel) * plane..][..plane];
                if self.stride == [1, 1] && self.grid[1] == self.image[1] {
                    self.copy_shifted(from, tap, &block.rows, to);
                } else {
                    self.copy_rows(from, tap, &block.rows, to);
                }
            }
        });
    }

    /// Copies one tap over grid rows of the width of the image: a shifted range, then zeros for the pixels that wrapped
    /// around from a neighbouring row.
    fn copy_shifted(&self, from: &[f32], [down, right]: [isize; 2], rows: &Range<usize>, to: &mut [f32]) {
        let width = self.grid[1];
        let shift = (rows.start as isize + down) * width as isize + right;
        let start = (-shift).clamp(0, to.len() as isize) as usize;
        let end = (from.len() as isize - shift).clamp(start as isize, to.len() as isize) as usize;
        to[..start].fill(0.0);
        to[end..].fill(0.0);
        if start < end {
            let first = (start as isize + shift) as usize;
            to[start..end].copy_from_slice(&from[first..first + end - start]);
        }
        let wrapped = match right {
            0 => return,
            1.. => width.saturating_sub(right as usize)..width,
            _ => 0..width.min(right.unsigned_abs()),
        };
        for row in to.chunks_exact_mut(width) {
            row[wrapped.clone()].fill(0.0);
        }
    }

    /// Copies one tap over grid rows of any width and stride.
    fn copy_rows(&self, from: &[f32], tap: [isize; 2], rows: &Range<usize>, to: &mut [f32]) {
        for (row, to) in rows.clone().zip(to.chunks_exact_mut(self.grid[1])) {
            let Some(from) = self.image_row(row, tap[0]).map(|row| &from[row * self.image[1]..][..self.image[1]])
            else {
                to.fill(0.0);
                continue;
            };
            for (column, to) in to.iter_mut().enumerate() {
                let column = (column * self.stride[1]).wrapping_add_signed(tap[1]);
                *to = from.get(column).copied().unwrap_or(0.0);
            }
        }
    }

    /// The image row for a row of the grid, or `None` in the padding.
    fn image_row(&self, row: usize, tap: isize) -> Option<usize> {
        (row * self.stride[0]).checked_add_signed(tap).filter(|row| *row < self.image[0])
    }

    /// Adds the columns of a block to the images (col2im, the transpose of [`Unfold::unfold`]).
    pub(crate) fn fold(&self, columns: &[f32], block: &Block, images: &mut [f32]) {
        let pixels = block.pixels(self.grid[1]);
        let (plane, segment) = (self.image[0] * self.image[1], block.rows.len() * self.grid[1]);
        let images =
            &mut images[block.images.start * self.channels * plane..][..block.images.len() * self.channels * plane];
        for_each(images.par_chunks_mut(plane), columns.len(), |index, to| {
            let (image, channel) = (index / self.channels, index % self.channels);
            for (tap, [down, right]) in self.taps.iter().enumerate() {
                let from = &columns[(channel * self.taps.len() + tap) * pixels + image * segment..][..segment];
                for (row, from) in block.rows.clone().zip(from.chunks_exact(self.grid[1])) {
                    let Some(row) = self.image_row(row, *down) else { continue };
                    let to = &mut to[row * self.image[1]..][..self.image[1]];
                    for (column, value) in from.iter().enumerate() {
                        if let Some(to) = to.get_mut((column * self.stride[1]).wrapping_add_signed(*right)) {
                            *to += value;
                        }
                    }
                }
            }
        });
    }
}

/// Writes a matrix `[C, pixels of the block]`, plus a bias `[C]` if given, to the block of images `[B, C, H, W]`.
pub(crate) fn write_block(
    matrix: &[f32],
    bias: Option<&[f32]>,
    block: &Block,
    [height, width]: [usize; 2],
    images: &mut [f32],
) {
    let (plane, pixels) = (height * width, block.pixels(width));
    let channels = matrix.len() / pixels;
    let segment = block.rows.start * width..block.rows.end * width;
    let images = &mut images[block.images.start * channels * plane..][..block.images.len() * channels * plane];
    for_each(images.par_chunks_mut(plane), matrix.len(), |index, to| {
        let (image, channel) = (index / channels, index % channels);
        let from = &matrix[channel * pixels + image * segment.len()..][..segment.len()];
        let to = &mut to[segment.clone()];
        match bias {
            Some(bias) => to.iter_mut().zip(from).for_each(|(to, from)| *to = from + bias[channel]),
            None => to.copy_from_slice(from),
        }
    });
}
