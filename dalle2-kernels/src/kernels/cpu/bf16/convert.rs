//! From f32 to 16 bits and back.

use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::super::parallel::{WORTH_A_THREAD, for_each};
use super::super::raw::bf16::SQUARE;

/// Values of 16 bits in f32.
pub fn cast_to_f32<T: Sync>(values: &[T]) -> Vec<f32>
where
    [T]: HalfFloatSliceExt,
{
    let mut wide = vec![0.0; values.len()];
    let chunks = wide.par_chunks_mut(WORTH_A_THREAD).zip(values.par_chunks(WORTH_A_THREAD));
    for_each(chunks, values.len(), |_, (wide, values)| values.convert_to_f32_slice(wide));
    wide
}

/// Where the rows of a tensor begin and how far apart the values of a row are, for any order in memory.
#[derive(Debug)]
pub struct Rows {
    pub starts: Vec<usize>,
    pub length: usize,
    pub step: usize,
}

/// The rows as `convert` rounds them, one behind the other.
pub fn cast_to_16_bits<T: Copy + Default + Send>(values: &[f32], rows: &Rows, convert: impl Fn(f32) -> T + Sync) -> Vec<T> {
    let Rows { starts, length, step } = rows;
    let mut narrow = vec![T::default(); starts.len() * length];
    // Rows of a transposed matrix lie side by side: some together read whole cache lines.
    let chunks = narrow.par_chunks_mut(SQUARE * length).zip(starts.par_chunks(SQUARE));
    for_each(chunks, starts.len() * length, |_, (narrow, starts)| {
        for i in 0..*length {
            for (row, start) in starts.iter().enumerate() {
                narrow[row * length + i] = convert(values[start + i * step]);
            }
        }
    });
    narrow
}
