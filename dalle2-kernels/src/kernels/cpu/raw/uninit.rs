//! A matrix that tasks fill row by row, in memory that is not zeroed first.

use std::mem::MaybeUninit;

/// A matrix that is partly initialised.
///
/// Each row is written from left to right, and the number of its written elements is tracked: a matrix with a gap cannot
/// be taken out.
#[derive(Debug)]
pub(crate) struct UninitRows {
    data: Vec<f32>,
    /// Number of written elements per row.
    written: Vec<usize>,
    width: usize,
}

/// A range of rows of an [`UninitRows`].
#[derive(Debug)]
pub(crate) struct Rows<'a> {
    data: &'a mut [MaybeUninit<f32>],
    written: &'a mut [usize],
    width: usize,
}

impl UninitRows {
    /// Allocates a matrix of `rows` rows of `width` elements.
    ///
    /// # Panics
    /// If the number of elements overflows.
    pub(crate) fn new(rows: usize, width: usize) -> Self {
        assert!(rows.checked_mul(width).is_some(), "uninit: {rows} rows of {width} elements overflow");
        Self { data: Vec::with_capacity(rows * width), written: vec![0; rows], width }
    }

    /// Returns all rows for writing.
    pub(crate) fn rows(&mut self) -> Rows<'_> {
        let count = self.written.len() * self.width;
        let data = &mut self.data.spare_capacity_mut()[..count];
        Rows { data, written: &mut self.written, width: self.width }
    }

    /// Returns the elements.
    ///
    /// # Panics
    /// If one was not written.
    pub(crate) fn finish(mut self) -> Vec<f32> {
        assert!(self.written.iter().all(|written| *written == self.width), "uninit: a row is incomplete");
        // SAFETY: `new` reserved the capacity. `Rows::write` initialises the elements of a row in order and counts them,
        // and all rows are full.
        unsafe { self.data.set_len(self.written.len() * self.width) };
        self.data
    }
}

impl<'a> Rows<'a> {
    /// Splits them into chunks of `rows` rows; the last chunk may be shorter.
    pub(crate) fn chunks(self, rows: usize) -> impl Iterator<Item = Rows<'a>> {
        let width = self.width;
        // Chunks of a slice cannot be empty: rows of width 0 have nothing to write.
        let data = self.data.chunks_mut((rows * width).max(1));
        data.zip(self.written.chunks_mut(rows)).map(move |(data, written)| Rows { data, written, width })
    }

    /// Writes the next elements of a row.
    ///
    /// # Panics
    /// If `column` is not the first unwritten element, or the row is too short.
    #[inline(always)]
    pub(crate) fn write(&mut self, [row, column]: [usize; 2], data: &[f32]) {
        let written = &mut self.written[row];
        assert_eq!(*written, column, "uninit: a row is written from left to right");
        let place = &mut self.data[row * self.width..][..self.width];
        place[column..column + data.len()].write_copy_of_slice(data);
        *written += data.len();
    }
}

#[cfg(test)]
mod tests {
    use super::UninitRows;

    #[test]
    fn rows_are_written_in_pieces() {
        let mut result = UninitRows::new(5, 3);
        for (piece, mut rows) in result.rows().chunks(2).enumerate() {
            for row in 0..if piece == 2 { 1 } else { 2 } {
                let value = (piece * 2 + row) as f32;
                rows.write([row, 0], &[value]);
                rows.write([row, 1], &[value + 0.25, value + 0.5]);
            }
        }
        let expected: Vec<f32> = (0..5).flat_map(|row| [0.0, 0.25, 0.5].map(|part| row as f32 + part)).collect();
        assert_eq!(result.finish(), expected);
        assert!(UninitRows::new(4, 0).finish().is_empty());
        assert!(UninitRows::new(0, 4).finish().is_empty());
    }

    #[test]
    #[should_panic(expected = "a row is incomplete")]
    fn a_gap_is_not_handed_out() {
        let mut result = UninitRows::new(2, 2);
        let mut rows = result.rows();
        rows.write([0, 0], &[1.0, 2.0]);
        rows.write([1, 0], &[3.0]);
        result.finish();
    }

    #[test]
    #[should_panic(expected = "from left to right")]
    fn a_value_is_not_written_twice() {
        let mut result = UninitRows::new(1, 2);
        let mut rows = result.rows();
        rows.write([0, 0], &[1.0]);
        rows.write([0, 0], &[1.0]);
    }
}
