//! Tiles in panels, and the pixels that they read.
//!
//! Tiles are numbered through the batch, row by row, and taken in panels of [`PANEL`], of which everything is vectorised
//! over the tiles.

use super::super::planes::Planes;
use super::super::raw::{PANEL, Row};
use super::tiles;

/// One value of every tile of a panel at each of N × N places.
pub type Grid<const N: usize> = [[Row; N]; N];

/// Tiles that are worked on together.
#[derive(Debug, Clone)]
pub struct Panel {
    /// Those of each row of tiles.
    pub runs: Vec<Run>,
    /// Tiles in it.
    pub count: usize,
}

/// Neighbouring tiles of a row of one image.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// The image.
    pub image: usize,
    /// Row and column of the first tile's upper left pixel in the output.
    pub at: [usize; 2],
    /// Its place in the panel.
    pub lane: usize,
    /// Tiles in it.
    pub count: usize,
}

impl Panel {
    /// The panels over the grids of a batch, of tiles with this side.
    pub fn cover(batch: usize, grid: [usize; 2], side: usize) -> Vec<Self> {
        let [down, across] = tiles(grid, side);
        let total = batch * down * across;
        (0..total)
            .step_by(PANEL)
            .map(|first| {
                let count = PANEL.min(total - first);
                let (mut runs, mut lane) = (Vec::new(), 0);
                while lane < count {
                    let (row, column) = ((first + lane) / across, (first + lane) % across);
                    let run = Run {
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

/// Longest row of pixels that a run reads, of tiles with a side up to four.
pub const LONGEST: usize = PANEL * 4 + 2;

/// Where the pixels of a row of N × N patches lie, of which one begins after every T pixels.
#[derive(Debug, Clone)]
pub struct Columns {
    /// Those of the image, for a run beyond it none.
    pub inside: std::ops::Range<usize>,
    /// Pixels before them, outside the image.
    pub offset: usize,
    /// Pixels of the row.
    pub length: usize,
}

impl Columns {
    /// Those that a run reads of an image of this width, which begins after `padding` columns.
    #[inline(always)]
    pub fn of<const T: usize, const N: usize>(run: &Run, width: usize, padding: usize) -> Self {
        let length = run.count * T + N - T;
        let start = run.at[1] as isize - padding as isize;
        let clamp = |column: isize| column.clamp(0, width as isize) as usize;
        let inside = clamp(start)..clamp(start + length as isize);
        // Wide padding on the right lets a run begin beyond the image: nothing is inside then.
        let offset = (inside.start as isize - start).max(0) as usize;
        Self { inside, offset, length }
    }
}

/// The N × N pixels of the tiles of a run, T apart, of the first plane; zero outside of it.
#[inline(always)]
pub fn read_patches<const T: usize, const N: usize>(
    image: &Planes<'_>,
    padding: [usize; 2],
    run: &Run,
    patch: &mut Grid<N>,
) {
    let [height, width] = image.size();
    let Columns { inside, offset, .. } = Columns::of::<T, N>(run, width, padding[1]);
    let mut line = [0.0; LONGEST];
    for (row, patch) in patch.iter_mut().enumerate() {
        let Some(y) = (run.at[0] + row).checked_sub(padding[0]).filter(|y| *y < height) else {
            patch.iter_mut().for_each(|values| values[run.lane..run.lane + run.count].fill(0.0));
            continue;
        };
        match (image.as_kept(), inside.len()) {
            // Lengths that are known ahead need no call to copy.
            (Some(pixels), 16) => copy::<16>(&pixels[y * width + inside.start..], &mut line[offset..]),
            (Some(pixels), 8) => copy::<8>(&pixels[y * width + inside.start..], &mut line[offset..]),
            (Some(pixels), length) => {
                line[offset..offset + length].copy_from_slice(&pixels[y * width..][inside.clone()]);
            }
            (None, _) => image.read(y, inside.clone(), |i, value| line[offset + i] = value),
        }
        match run.count {
            PANEL => spread::<PANEL, T, N>(&line, patch, run.lane),
            16 => spread::<16, T, N>(&line, patch, run.lane),
            8 => spread::<8, T, N>(&line, patch, run.lane),
            4 => spread::<4, T, N>(&line, patch, run.lane),
            2 => spread::<2, T, N>(&line, patch, run.lane),
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

/// Every T-th pixel of a line, from each of N places.
#[inline(always)]
fn spread<const TILES: usize, const T: usize, const N: usize>(
    line: &[f32; LONGEST],
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
