//! Images that are resampled while they are read.

use std::{borrow::Cow, ops::Range};

use rayon::prelude::*;

use super::super::super::Resample;

/// Planes of equal size, one after the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Planes<'a> {
    data: &'a [f32],
    /// Height and width after resampling.
    size: [usize; 2],
    how: Resample,
}

/// Height and width in memory of planes that have `[height, width]` after resampling.
pub(crate) fn before([height, width]: [usize; 2], how: Resample) -> [usize; 2] {
    match how {
        Resample::Keep => [height, width],
        Resample::Down => [2 * height, 2 * width],
        Resample::Up => [height / 2, width / 2],
    }
}

impl<'a> Planes<'a> {
    /// Creates planes of height and width `size` after resampling, both even for [`Resample::Up`].
    ///
    /// # Panics
    /// If the length is not a multiple of a plane.
    pub(crate) fn new(data: &'a [f32], size: [usize; 2], how: Resample) -> Self {
        assert_eq!(data.len() % before(size, how).iter().product::<usize>(), 0, "length of planes of {size:?}");
        Self { data, size, how }
    }

    /// Creates planes without resampling.
    pub(crate) fn unchanged(data: &'a [f32], size: [usize; 2]) -> Self {
        Self::new(data, size, Resample::Keep)
    }

    /// Height and width after resampling.
    pub(crate) fn size(&self) -> [usize; 2] {
        self.size
    }

    /// The elements in memory if nothing is resampled.
    pub(crate) fn as_unchanged(&self) -> Option<&'a [f32]> {
        (self.how == Resample::Keep).then_some(self.data)
    }

    /// Returns one plane.
    #[inline(always)]
    pub(crate) fn plane(&self, index: usize) -> Self {
        let [height, width] = before(self.size, self.how);
        Self { data: &self.data[index * height * width..][..height * width], ..*self }
    }

    /// Calls `to(i, value)` for each pixel i of a range of columns of a row of the first plane.
    #[inline(always)]
    pub(crate) fn read(&self, row: usize, columns: Range<usize>, mut to: impl FnMut(usize, f32)) {
        let width = before(self.size, self.how)[1];
        match self.how {
            Resample::Keep => {
                for (i, value) in self.data[row * width..][columns].iter().enumerate() {
                    to(i, *value);
                }
            }
            Resample::Up => {
                let line = &self.data[row / 2 * width..][..width];
                for (i, column) in columns.enumerate() {
                    to(i, line[column / 2]);
                }
            }
            Resample::Down => {
                let (upper, lower) = self.data[2 * row * width..][..2 * width].split_at(width);
                for (i, column) in columns.enumerate() {
                    let of = |line: &[f32]| line[2 * column] + line[2 * column + 1];
                    to(i, (of(upper) + of(lower)) * 0.25);
                }
            }
        }
    }

    /// Returns all pixels after resampling, without a copy if nothing is resampled.
    pub(crate) fn resampled(&self) -> Cow<'a, [f32]> {
        self.as_unchanged().map_or_else(|| Cow::Owned(self.resampled_data()), Cow::Borrowed)
    }

    fn resampled_data(&self) -> Vec<f32> {
        let plane = self.size[0] * self.size[1];
        let count = self.data.len() / before(self.size, self.how).iter().product::<usize>();
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
        let data: Vec<f32> = (0..16).map(|i| i as f32).collect();
        assert_eq!(Planes::unchanged(&data, [2, 4]).resampled().as_ref(), data);
        assert_eq!(Planes::new(&data, [1, 2], Resample::Down).resampled().as_ref(), [2.5, 4.5, 10.5, 12.5]);
        let up = Planes::new(&data[..4], [4, 4], Resample::Up).resampled();
        assert_eq!(up.as_ref(), [0., 0., 1., 1., 0., 0., 1., 1., 2., 2., 3., 3., 2., 2., 3., 3.]);
        let mut read = Vec::new();
        let second = Planes::new(&data, [4, 4], Resample::Up).plane(1);
        second.read(2, 1..4, |i, value| read.push((i, value)));
        assert_eq!(read, [(0, 6.0), (1, 7.0), (2, 7.0)]);
    }

    #[test]
    #[should_panic(expected = "length of planes")]
    fn partial_planes_are_refused() {
        Planes::new(&[0.0; 6], [2, 2], Resample::Keep);
    }
}
