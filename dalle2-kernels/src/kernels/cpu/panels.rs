//! Matrices, and their columns side by side as the register tile reads them.

use std::ops::Range;

use super::raw::{PANEL, Row, SQUARE, transpose};

/// A matrix, or the transpose of one, whose rows follow each other in memory.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    values: &'a [f32],
    size: [usize; 2],
    transposed: bool,
}

impl<'a> Matrix<'a> {
    /// A matrix of so many rows and columns.
    ///
    /// # Panics
    /// If there are not as many values.
    pub fn new(values: &'a [f32], size: [usize; 2]) -> Self {
        assert_eq!(values.len(), size[0] * size[1], "values of a matrix of {size:?}");
        Self { values, size, transposed: false }
    }

    /// With rows and columns exchanged.
    pub fn transposed(self) -> Self {
        let [rows, columns] = self.size;
        Self { size: [columns, rows], transposed: !self.transposed, ..self }
    }

    /// Rows and columns.
    pub fn size(&self) -> [usize; 2] {
        self.size
    }

    /// The values in memory, `stride` apart from one row to the next or, of a transposed one, from column to column.
    pub fn in_memory(&self) -> (&'a [f32], usize) {
        (self.values, if self.transposed { self.size[0] } else { self.size[1] })
    }

    /// Whether columns and not rows follow each other in memory.
    pub fn is_transposed(&self) -> bool {
        self.transposed
    }

    /// Writes some rows of the columns from `first` on to panels, `[panels, rows]`; those that the last panel has too
    /// many are left as they are.
    pub fn pack(&self, rows: Range<usize>, first: usize, panels: &mut [Row]) {
        if self.transposed {
            for (i, panel) in panels.chunks_exact_mut(rows.len()).enumerate() {
                let first = first + i * PANEL;
                self.pack_columns(&rows, first..(first + PANEL).min(self.size[1]), panel);
            }
            return;
        }
        // Row by row through all panels, so that memory is read in order.
        let (values, stride) = self.in_memory();
        for (k, row) in rows.clone().enumerate() {
            let row = &values[row * stride..][..stride];
            for (to, from) in panels.iter_mut().skip(k).step_by(rows.len()).zip(row[first..].chunks(PANEL)) {
                match from.first_chunk::<PANEL>() {
                    Some(from) => *to = *from,
                    None => to[..from.len()].copy_from_slice(from),
                }
            }
        }
    }

    /// A panel of columns that follow each other in memory, by squares.
    fn pack_columns(&self, rows: &Range<usize>, columns: Range<usize>, panel: &mut [Row]) {
        let (values, stride) = self.in_memory();
        for column in columns.clone().step_by(SQUARE) {
            let (count, lane) = (SQUARE.min(columns.end - column), column - columns.start);
            for k in (0..rows.len()).step_by(SQUARE) {
                let from = &values[column * stride + rows.start + k..];
                let to = &mut panel[k..rows.len().min(k + SQUARE)];
                if count == SQUARE && to.len() == SQUARE {
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
        let values: Vec<f32> = (0..rows * columns).map(|i| at(i / columns, i % columns)).collect();
        let turned: Vec<f32> = (0..rows * columns).map(|i| at(i % rows, i / rows)).collect();
        let matrices = [Matrix::new(&values, [rows, columns]), Matrix::new(&turned, [columns, rows]).transposed()];
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
    #[should_panic(expected = "values of a matrix")]
    fn too_few_values_are_refused() {
        Matrix::new(&[0.0; 5], [2, 3]);
    }
}
