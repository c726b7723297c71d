//! Images that are read as if their resolution had been changed.

use std::{borrow::Cow, ops::Range};

use rayon::prelude::*;

use super::super::super::Resample;

/// Planes of the same size, one after the other.
#[derive(Debug, Clone, Copy)]
pub struct Planes<'a> {
    values: &'a [f32],
    /// Sides after the change.
    size: [usize; 2],
    how: Resample,
}

/// The sides in memory of what has sides of `size` after the change.
pub fn before([height, width]: [usize; 2], how: Resample) -> [usize; 2] {
    match how {
        Resample::Keep => [height, width],
        Resample::Down => [2 * height, 2 * width],
        Resample::Up => [height / 2, width / 2],
    }
}

impl<'a> Planes<'a> {
    /// Planes that have these sides once their resolution is changed; even ones, where it is doubled.
    ///
    /// # Panics
    /// If the values are not those of whole planes.
    pub fn new(values: &'a [f32], size: [usize; 2], how: Resample) -> Self {
        assert_eq!(values.len() % before(size, how).iter().product::<usize>(), 0, "values of planes of {size:?}");
        Self { values, size, how }
    }

    /// Planes as they are.
    pub fn kept(values: &'a [f32], size: [usize; 2]) -> Self {
        Self::new(values, size, Resample::Keep)
    }

    /// Sides after the change.
    pub fn size(&self) -> [usize; 2] {
        self.size
    }

    /// The values in memory, if they are read as they are.
    pub fn as_kept(&self) -> Option<&'a [f32]> {
        (self.how == Resample::Keep).then_some(self.values)
    }

    /// A plane.
    #[inline(always)]
    pub fn plane(&self, index: usize) -> Self {
        let [height, width] = before(self.size, self.how);
        Self { values: &self.values[index * height * width..][..height * width], ..*self }
    }

    /// Calls `to(i, value)` for each pixel i of some columns of a row of the first plane.
    #[inline(always)]
    pub fn read(&self, row: usize, columns: Range<usize>, mut to: impl FnMut(usize, f32)) {
        let width = before(self.size, self.how)[1];
        match self.how {
            Resample::Keep => {
                for (i, value) in self.values[row * width..][columns].iter().enumerate() {
                    to(i, *value);
                }
            }
            Resample::Up => {
                let line = &self.values[row / 2 * width..][..width];
                for (i, column) in columns.enumerate() {
                    to(i, line[column / 2]);
                }
            }
            Resample::Down => {
                let (upper, lower) = self.values[2 * row * width..][..2 * width].split_at(width);
                for (i, column) in columns.enumerate() {
                    let of = |line: &[f32]| line[2 * column] + line[2 * column + 1];
                    to(i, (of(upper) + of(lower)) * 0.25);
                }
            }
        }
    }

    /// All pixels after the change, which are those in memory if there is none.
    pub fn kept_or_resampled(&self) -> Cow<'a, [f32]> {
        self.as_kept().map_or_else(|| Cow::Owned(self.resampled()), Cow::Borrowed)
    }

    fn resampled(&self) -> Vec<f32> {
        let plane = self.size[0] * self.size[1];
        let count = self.values.len() / before(self.size, self.how).iter().product::<usize>();
        let mut all = vec![0.0; count * plane];
        all.par_chunks_mut(plane).enumerate().for_each(|(index, pixels)| {
            for (row, pixels) in pixels.chunks_exact_mut(self.size[1]).enumerate() {
                self.plane(index).read(row, 0..self.size[1], |i, value| pixels[i] = value);
            }
        });
        all
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::super::Resample;
    use super::Planes;

    #[test]
    fn pixels_are_repeated_and_averaged() {
        let values: Vec<f32> = (0..16).map(|i| i as f32).collect();
        assert_eq!(Planes::kept(&values, [2, 4]).resampled(), values);
        assert_eq!(Planes::new(&values, [1, 2], Resample::Down).resampled(), [2.5, 4.5, 10.5, 12.5]);
        let up = Planes::new(&values[..4], [4, 4], Resample::Up).resampled();
        assert_eq!(up, [0., 0., 1., 1., 0., 0., 1., 1., 2., 2., 3., 3., 2., 2., 3., 3.]);
        let mut read = Vec::new();
        let second = Planes::new(&values, [4, 4], Resample::Up).plane(1);
        second.read(2, 1..4, |i, value| read.push((i, value)));
        assert_eq!(read, [(0, 6.0), (1, 7.0), (2, 7.0)]);
    }

    #[test]
    #[should_panic(expected = "values of planes")]
    fn parts_of_planes_are_refused() {
        Planes::new(&[0.0; 6], [2, 2], Resample::Keep);
    }
}
