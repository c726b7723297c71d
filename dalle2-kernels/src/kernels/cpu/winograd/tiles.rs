//! Panels of tiles, and the pixels of their input tiles.
//!
//! Tiles are numbered row by row through the batch and grouped into panels of [`PANEL`] tiles, the lanes of all vector
//! operations.

use super::super::planes::Planes;
use super::super::raw::{PANEL, Row};
use super::method::tiles;

/// N × N elements of every tile of a panel.
pub(crate) type Grid<const N: usize> = [[Row; N]; N];

/// A panel of tiles.
#[derive(Debug, Clone)]
pub(crate) struct TilePanel {
    /// The tiles by image row.
    pub runs: Vec<TileRun>,
    /// Number of tiles.
    pub count: usize,
}

/// Adjacent tiles of one image row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TileRun {
    /// The image.
    pub image: usize,
    /// Row and column of the first tile's upper left pixel in the output.
    pub at: [usize; 2],
    /// Lane of the first tile in the panel.
    pub lane: usize,
    /// Number of tiles.
    pub count: usize,
}

impl TilePanel {
    /// Covers the grids of a batch by tiles with sides of `side` pixels.
    pub(crate) fn cover(batch: usize, grid: [usize; 2], side: usize) -> Vec<Self> {
        let [down, across] = tiles(grid, side);
        let total = batch * down * across;
        (0..total)
            .step_by(PANEL)
            .map(|first| {
                let count = PANEL.min(total - first);
                let (mut runs, mut lane) = (Vec::new(), 0);
                while lane < count {
                    let (row, column) = ((first + lane) / across, (first + lane) % across);
                    let run = TileRun {
                        image: row / down,
                        at: [row % down * side, column * side],
                        lane,
                        count: (across - column).min(count - lane),
                    };
                    lane += run.count;
                    runs.push(run);
                }
                Self { runs, count }
            })
            .collect()
    }
}

/// Maximum number of pixels in a row of input tiles, for output tiles with sides up to four.
pub(crate) const MAX_LINE: usize = PANEL * 4 + 2;

/// The image columns of a row of N × N input tiles, T pixels apart.
#[derive(Debug, Clone)]
pub(crate) struct Columns {
    /// Columns inside the image, possibly empty.
    pub inside: std::ops::Range<usize>,
    /// Number of padding pixels before them.
    pub offset: usize,
    /// Number of pixels of the row.
    pub length: usize,
}

impl Columns {
    /// The columns of a run of tiles in an image of `width` columns after `padding` columns of padding.
    #[inline(always)]
    pub(crate) fn of<const T: usize, const N: usize>(run: &TileRun, width: usize, padding: usize) -> Self {
        let length = run.count * T + N - T;
        let start = run.at[1] as isize - padding as isize;
        let clamp = |column: isize| column.clamp(0, width as isize) as usize;
        let inside = clamp(start)..clamp(start + length as isize);
        // With wide right padding a run may begin beyond the image; `inside` is empty then.
        let offset = (inside.start as isize - start).max(0) as usize;
        Self { inside, offset, length }
    }
}

/// Reads the N × N input tiles of a run, T pixels apart, from the first plane; zero in the padding.
#[inline(always)]
pub(crate) fn read_input_tiles<const T: usize, const N: usize>(
    image: &Planes<'_>,
    padding: [usize; 2],
    run: &TileRun,
    patch: &mut Grid<N>,
) {
    let [height, width] = image.size();
    let Columns { inside, offset, .. } = Columns::of::<T, N>(run, width, padding[1]);
    let mut line = [0.0; MAX_LINE];
    for (row, patch) in patch.iter_mut().enumerate() {
        let Some(y) = (run.at[0] + row).checked_sub(padding[0]).filter(|y| *y < height) else {
            patch.iter_mut().for_each(|values| values[run.lane..run.lane + run.count].fill(0.0));
            continue;
        };
        match (image.as_unchanged(), inside.len()) {
            // Constant lengths avoid a call to memcpy.
            (Some(pixels), 16) => copy::<16>(&pixels[y * width + inside.start..], &mut line[offset..]),
            (Some(pixels), 8) => copy::<8>(&pixels[y * width + inside.start..], &mut line[offset..]),
            (Some(pixels), length) => {
                line[offset..offset + length].copy_from_slice(&pixels[y * width..][inside.clone()]);
            }
            (None, _) => image.read(y, inside.clone(), |i, value| line[offset + i] = value),
        }
        match run.count {
            PANEL => deinterleave::<PANEL, T, N>(&line, patch, run.lane),
            16 => deinterleave::<16, T, N>(&line, patch, run.lane),
            8 => deinterleave::<8, T, N>(&line, patch, run.lane),
            4 => deinterleave::<4, T, N>(&line, patch, run.lane),
            2 => deinterleave::<2, T, N>(&line, patch, run.lane),
            _ => {
                for tile in 0..run.count {
                    for (column, values) in patch.iter_mut().enumerate() {
                        values[run.lane + tile] = line[tile * T + column];
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn copy<const COUNT: usize>(from: &[f32], to: &mut [f32]) {
    to[..COUNT].copy_from_slice(&from[..COUNT]);
}

/// Distributes a line of pixels to the N columns of input tiles that begin every T pixels.
#[inline(always)]
fn deinterleave<const TILES: usize, const T: usize, const N: usize>(
    line: &[f32; MAX_LINE],
    patch: &mut [Row; N],
    lane: usize,
) {
    for (column, values) in patch.iter_mut().enumerate() {
        let values = &mut values[lane..lane + TILES];
        for tile in 0..TILES {
            values[tile] = line[tile * T + column];
        }
    }
}
