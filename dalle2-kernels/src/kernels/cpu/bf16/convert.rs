//! Casts between f32 and 16-bit floats.

use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::super::parallel::{MIN_PARALLEL_LEN, for_each};
use super::super::raw::bf16::BLOCK_SIDE;

/// Casts to f32.
pub(crate) fn cast_to_f32<T: Sync>(data: &[T]) -> Vec<f32>
where
    [T]: HalfFloatSliceExt,
{
    let mut f32s = vec![0.0; data.len()];
    let chunks = f32s.par_chunks_mut(MIN_PARALLEL_LEN).zip(data.par_chunks(MIN_PARALLEL_LEN));
    for_each(chunks, data.len(), |_, (f32s, data)| data.convert_to_f32_slice(f32s));
    f32s
}

/// The memory layout of the rows of a tensor with arbitrary strides.
#[derive(Debug)]
pub(crate) struct Rows {
    pub starts: Vec<usize>,
    pub length: usize,
    pub step: usize,
}

/// Casts the rows with `convert` and writes them one after the other.
pub(crate) fn cast_to_16_bits<T: Copy + Default + Send>(
    data: &[f32],
    rows: &Rows,
    convert: impl Fn(f32) -> T + Sync,
) -> Vec<T> {
    let Rows { starts, length, step } = rows;
    let mut cast = vec![T::default(); starts.len() * length];
    // The rows of a transposed matrix interleave in memory: a chunk of rows reads full cache lines.
    let chunks = cast.par_chunks_mut(BLOCK_SIDE * length).zip(starts.par_chunks(BLOCK_SIDE));
    for_each(chunks, starts.len() * length, |_, (cast, starts)| {
        for i in 0..*length {
            for (row, start) in starts.iter().enumerate() {
                cast[row * length + i] = convert(data[start + i * step]);
            }
        }
    });
    cast
}
