//! Matrix views, and their packing into the panels of the micro-kernel.

use std::ops::Range;

use super::raw::{BLOCK_SIDE, PANEL, Row, transpose};

/// A row-major matrix, or the transpose of one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    size: [usize; 2],
    transposed: bool,
}

impl<'a> Matrix<'a> {
    /// Creates a row-major matrix of `size` rows and columns.
    ///
    /// # Panics
    /// If the length is not rows · columns.
    pub(crate) fn new(data: &'a [f32], size: [usize; 2]) -> Self {
        assert_eq!(Some(data.len()), size[0].checked_mul(size[1]), "length of a matrix of {size:?}");
        Self { data, size, transposed: false }
    }

    /// Returns the transpose.
    pub(crate) fn transposed(self) -> Self {
        let [rows, columns] = self.size;
        Self { size: [columns, rows], transposed: !self.transposed, ..self }
    }

    /// Rows and columns.
    pub(crate) fn size(&self) -> [usize; 2] {
        self.size
    }

    /// Returns the elements in memory and the stride between rows, or between columns if transposed.
    pub(crate) fn in_memory(&self) -> (&'a [f32], usize) {
        (self.data, if self.transposed { self.size[0] } else { self.size[1] })
    }

    /// Whether it is column-major.
    pub(crate) fn is_transposed(&self) -> bool {
        self.transposed
    }

    /// Packs a range of rows of the columns from `first` on into panels, `[panels, rows]`. Columns of the last panel beyond
    /// the matrix are not written.
    pub(crate) fn pack(&self, rows: Range<usize>, first: usize, panels: &mut [Row]) {
        if self.transposed {
            for (i, panel) in panels.chunks_exact_mut(rows.len()).enumerate() {
                let first = first + i * PANEL;
                self.pack_columns(&rows, first..(first + PANEL).min(self.size[1]), panel);
            }
            return;
        }
        // Row by row through all panels, for sequential reads.
        let (data, stride) = self.in_memory();
        for (k, row) in rows.clone().enumerate() {
            let row = &data[row * stride..][..stride];
            for (to, from) in panels.iter_mut().skip(k).step_by(rows.len()).zip(row[first..].chunks(PANEL)) {
                match from.first_chunk::<PANEL>() {
                    Some(from) => *to = *from,
                    None => to[..from.len()].copy_from_slice(from),
                }
            }
        }
    }

    /// Packs a panel of a column-major matrix by block transposes.
    fn pack_columns(&self, rows: &Range<usize>, columns: Range<usize>, panel: &mut [Row]) {
        let (data, stride) = self.in_memory();
        for column in columns.clone().step_by(BLOCK_SIDE) {
            let (count, lane) = (BLOCK_SIDE.min(columns.end - column), column - columns.start);
            for k in (0..rows.len()).step_by(BLOCK_SIDE) {
                let from = &data[column * stride + rows.start + k..];
                let to = &mut panel[k..rows.len().min(k + BLOCK_SIDE)];
                if count == BLOCK_SIDE && to.len() == BLOCK_SIDE {
                    transpose((from, stride), (&mut to.as_flattened_mut()[lane..], PANEL));
                } else {
                    for (i, to) in to.iter_mut().enumerate() {
                        for (j, to) in to[lane..lane + count].iter_mut().enumerate() {
                            *to = from[j * stride + i];
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::raw::PANEL;
    use super::Matrix;

    #[test]
    fn panels_hold_the_columns() {
        let [rows, columns] = [37, 3 * PANEL + 21];
        let at = |row: usize, column: usize| (row * 1000 + column) as f32;
        let data: Vec<f32> = (0..rows * columns).map(|i| at(i / columns, i % columns)).collect();
        let column_major: Vec<f32> = (0..rows * columns).map(|i| at(i % rows, i / rows)).collect();
        let matrices = [Matrix::new(&data, [rows, columns]), Matrix::new(&column_major, [columns, rows]).transposed()];
        for matrix in matrices {
            assert_eq!(matrix.size(), [rows, columns]);
            for (range, first, count) in [(0..rows, 0, 4), (3..20, PANEL, 2), (36..37, 3 * PANEL, 1)] {
                let mut panels = vec![[-1.0; PANEL]; count * range.len()];
                matrix.pack(range.clone(), first, &mut panels);
                for (i, panel) in panels.iter().enumerate() {
                    let (row, column) = (range.start + i % range.len(), first + i / range.len() * PANEL);
                    for (lane, value) in panel.iter().enumerate() {
                        let inside = column + lane < columns;
                        assert_eq!(*value, if inside { at(row, column + lane) } else { -1.0 });
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "length of a matrix")]
    fn a_wrong_length_is_refused() {
        Matrix::new(&[0.0; 5], [2, 3]);
    }
}
