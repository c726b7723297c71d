//! Turning matrices on the host, so that a loaded module computes bit for bit what the saved one did: a strided tensor
//! would take other paths through the matrix product.

/// Side of the blocks that are turned at a time: two of them fit the first cache.
const BLOCK: usize = 32;

/// The transposed matrix of `rows` × `columns` values in row-major order.
pub(super) fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut turned = vec![0.0; rows * columns];
    for top in (0..rows).step_by(BLOCK) {
        for left in (0..columns).step_by(BLOCK) {
            for row in top..(top + BLOCK).min(rows) {
                for column in left..(left + BLOCK).min(columns) {
                    turned[column * rows + row] = values[row * columns + column];
                }
            }
        }
    }
    turned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_moves_to_its_mirrored_place() {
        for (rows, columns) in [(1, 1), (3, 5), (32, 64), (70, 33), (1, 100), (0, 4)] {
            let values: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
            let turned = transpose(&values, rows, columns);
            for row in 0..rows {
                for column in 0..columns {
                    assert_eq!(turned[column * rows + row], values[row * columns + column]);
                }
            }
        }
    }
}
