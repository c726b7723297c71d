//! A result that tasks write row by row, into new memory without clearing it first.

use std::mem::MaybeUninit;

/// Rows of a width that are not all written yet.
///
/// Each row is written from left to right. How far it has come is kept beside it, so that a result with a gap is never
/// handed out.
#[derive(Debug)]
pub struct Unwritten {
    values: Vec<f32>,
    /// Values of each row that are written.
    written: Vec<usize>,
    width: usize,
}

/// Some rows of an [`Unwritten`].
#[derive(Debug)]
pub struct Rows<'a> {
    values: &'a mut [MaybeUninit<f32>],
    written: &'a mut [usize],
    width: usize,
}

impl Unwritten {
    /// Memory for so many rows.
    pub fn new(rows: usize, width: usize) -> Self {
        Self { values: Vec::with_capacity(rows * width), written: vec![0; rows], width }
    }

    /// All rows.
    pub fn rows(&mut self) -> Rows<'_> {
        let count = self.written.len() * self.width;
        let values = &mut self.values.spare_capacity_mut()[..count];
        Rows { values, written: &mut self.written, width: self.width }
    }

    /// The values.
    ///
    /// # Panics
    /// If one was not written.
    pub fn finish(mut self) -> Vec<f32> {
        assert!(self.written.iter().all(|written| *written == self.width), "unwritten: a row has a gap at its end");
        // SAFETY: the capacity is at least so much, and every value was written: `Rows::write` has written to each row
        // as many values as were counted, each right after the ones before, and all rows are full.
        unsafe { self.values.set_len(self.written.len() * self.width) };
        self.values
    }
}

impl<'a> Rows<'a> {
    /// Cuts them into pieces of so many rows, the last of which may be shorter.
    pub fn chunks(self, rows: usize) -> impl Iterator<Item = Rows<'a>> {
        let width = self.width;
        // Chunks of a slice cannot be empty: where rows have no values, there is none to write.
        let values = self.values.chunks_mut((rows * width).max(1));
        values.zip(self.written.chunks_mut(rows)).map(move |(values, written)| Rows { values, written, width })
    }

    /// Writes the next values of a row.
    ///
    /// # Panics
    /// If they do not begin where the row has come to, or go beyond its end.
    #[inline(always)]
    pub fn write(&mut self, [row, column]: [usize; 2], values: &[f32]) {
        let written = &mut self.written[row];
        assert_eq!(*written, column, "unwritten: a row is written from left to right");
        let place = &mut self.values[row * self.width..][..self.width];
        place[column..column + values.len()].write_copy_of_slice(values);
        *written += values.len();
    }
}

#[cfg(test)]
mod tests {
    use super::Unwritten;

    #[test]
    fn rows_are_written_in_pieces() {
        let mut result = Unwritten::new(5, 3);
        for (piece, mut rows) in result.rows().chunks(2).enumerate() {
            for row in 0..if piece == 2 { 1 } else { 2 } {
                let value = (piece * 2 + row) as f32;
                rows.write([row, 0], &[value]);
                rows.write([row, 1], &[value + 0.25, value + 0.5]);
            }
        }
        let expected: Vec<f32> = (0..5).flat_map(|row| [0.0, 0.25, 0.5].map(|part| row as f32 + part)).collect();
        assert_eq!(result.finish(), expected);
        assert!(Unwritten::new(4, 0).finish().is_empty());
        assert!(Unwritten::new(0, 4).finish().is_empty());
    }

    #[test]
    #[should_panic(expected = "a gap at its end")]
    fn a_gap_is_not_handed_out() {
        let mut result = Unwritten::new(2, 2);
        let mut rows = result.rows();
        rows.write([0, 0], &[1.0, 2.0]);
        rows.write([1, 0], &[3.0]);
        result.finish();
    }

    #[test]
    #[should_panic(expected = "from left to right")]
    fn a_value_is_not_written_twice() {
        let mut result = Unwritten::new(1, 2);
        let mut rows = result.rows();
        rows.write([0, 0], &[1.0]);
        rows.write([0, 0], &[1.0]);
    }
}
