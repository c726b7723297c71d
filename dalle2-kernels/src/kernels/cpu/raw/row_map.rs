//! Row-wise maps, in place or into memory that is not zeroed first.

use std::mem::MaybeUninit;

use macerator::{Scalar, Simd, WithSimd};
use rayon::prelude::*;

use super::super::parallel::{min_len, vectorized};
use super::vector::{MAX_LANES, V, load, store};

/// Minimum and maximum number of elements per task, tuned with `cargo bench -p dalle2-kernels --bench ops`.
const TASK_LEN: [usize; 2] = [8 * 1024, 64 * 1024];
/// Preferred minimum number of tasks, tuned with the same benchmark.
const MIN_TASKS: usize = 8;

/// An element-wise map over rows that may depend on a summary of the row and on N parameters per column.
pub(crate) trait RowMap<const N: usize>: Sync {
    /// Statistics of a row.
    type Summary: Copy + Send;

    /// Returns the parameters, each with at least one element per column.
    fn parameters(&self) -> [&[f32]; N];

    /// Computes the statistics of a row.
    fn summary<S: Simd>(&self, row: &[f32]) -> Self::Summary;

    /// Maps a vector of elements with their parameters.
    fn value<S: Simd>(&self, summary: Self::Summary, x: V<S>, parameters: [V<S>; N]) -> V<S>;
}

/// Maps rows of `width` elements (the last row may be shorter) and returns the result and the summaries.
///
/// # Panics
/// If a row has more elements than a parameter.
pub(crate) fn map_rows<M: RowMap<N>, const N: usize>(
    map: &M,
    from: &[f32],
    width: usize,
) -> (Vec<f32>, Vec<M::Summary>) {
    let mut new = Vec::with_capacity(from.len());
    let task = task(width, from.len());
    let summaries: Vec<Vec<M::Summary>> = new.spare_capacity_mut()[..from.len()]
        .par_chunks_mut(task)
        .zip(from.par_chunks(task))
        .with_min_len(min_len(from.len()))
        .map(|(to, from)| vectorized(MapUninit::<M, N> { map, from, to, width }))
        .collect();
    // SAFETY: the chunks cover the first `from.len()` elements of the capacity, and `MapUninit` wrote each.
    unsafe { new.set_len(from.len()) };
    (new, summaries.into_iter().flatten().collect())
}

/// [`map_rows`] in place.
pub(crate) fn map_rows_in_place<M: RowMap<N>, const N: usize>(
    map: &M,
    data: &mut [f32],
    width: usize,
) -> Vec<M::Summary> {
    let min_len = min_len(data.len());
    let tasks = data.par_chunks_mut(task(width, data.len())).with_min_len(min_len);
    let summaries: Vec<Vec<M::Summary>> =
        tasks.map(|data| vectorized(MapInPlace::<M, N> { map, data, width })).collect();
    summaries.into_iter().flatten().collect()
}

/// Number of elements per task: whole rows.
fn task(width: usize, data: usize) -> usize {
    ((data / MIN_TASKS).clamp(TASK_LEN[0], TASK_LEN[1]) / width).max(1) * width
}

struct MapUninit<'a, M, const N: usize> {
    map: &'a M,
    from: &'a [f32],
    to: &'a mut [MaybeUninit<f32>],
    width: usize,
}

impl<M: RowMap<N>, const N: usize> WithSimd for MapUninit<'_, M, N> {
    type Output = Vec<M::Summary>;

    /// Writes every value of `to`.
    #[inline(always)]
    fn with_simd<S: Simd>(self) -> Self::Output {
        assert_eq!(self.from.len(), self.to.len(), "map_rows: source and destination differ in length");
        let mut summaries = Vec::with_capacity(self.to.len().div_ceil(self.width));
        // Loops and not closures, which would be compiled without the instructions of `S`.
        for (to, from) in self.to.chunks_mut(self.width).zip(self.from.chunks(self.width)) {
            let summary = self.map.summary::<S>(from);
            // SAFETY: both are slices of the same length, as asserted above, the first for writing.
            unsafe { map_row::<S, M, N>(self.map, summary, from.as_ptr(), to.as_mut_ptr().cast(), to.len()) };
            summaries.push(summary);
        }
        summaries
    }
}

struct MapInPlace<'a, M, const N: usize> {
    map: &'a M,
    data: &'a mut [f32],
    width: usize,
}

impl<M: RowMap<N>, const N: usize> WithSimd for MapInPlace<'_, M, N> {
    type Output = Vec<M::Summary>;

    #[inline(always)]
    fn with_simd<S: Simd>(self) -> Self::Output {
        let mut summaries = Vec::with_capacity(self.data.len().div_ceil(self.width));
        for row in self.data.chunks_mut(self.width) {
            let summary = self.map.summary::<S>(row);
            let (place, count) = (row.as_mut_ptr(), row.len());
            // SAFETY: `row` is valid for reading and writing `count` elements.
            unsafe { map_row::<S, M, N>(self.map, summary, place, place, count) };
            summaries.push(summary);
        }
        summaries
    }
}

/// Writes the mapped elements of a row.
///
/// # Panics
/// If a parameter has fewer than `count` elements, before anything is written.
///
/// # Safety
/// `from` must be valid for reading `count` elements and `to` for writing them. They may be equal, and must not overlap
/// otherwise.
#[inline(always)]
unsafe fn map_row<S: Simd, M: RowMap<N>, const N: usize>(
    map: &M,
    summary: M::Summary,
    from: *const f32,
    to: *mut f32,
    count: usize,
) {
    let lanes = S::lanes32();
    let parameters = map.parameters();
    assert!(parameters.iter().all(|data| data.len() >= count), "map_rows: fewer parameters than elements");
    let full = count / lanes * lanes;
    for at in (0..full).step_by(lanes) {
        // SAFETY: `at + lanes <= count`, and the pointers and parameters cover `count` elements. The elements at `at` are
        // read before they are written.
        unsafe {
            let parameters = parameters.map(|data| f32::vload_unaligned(data.as_ptr().add(at)));
            let value = map.value::<S>(summary, f32::vload_unaligned(from.add(at)), parameters);
            f32::vstore_unaligned(to.add(at), value);
        }
    }
    if full < count {
        // SAFETY: elements `full..count` are valid for reading; the slice ends before they are written.
        let last = load(unsafe { std::slice::from_raw_parts(from.add(full), count - full) });
        let value = map.value::<S>(summary, last, parameters.map(|data| load(&data[full..count])));
        let mut data = [0.0; MAX_LANES];
        store(value, &mut data[..lanes]);
        // SAFETY: elements `full..count` are valid for writing, and are fewer than `lanes`.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to.add(full), count - full) };
    }
}

#[cfg(test)]
mod tests {
    use macerator::{Scalar, Simd};

    use super::{RowMap, V, map_rows, map_rows_in_place};

    /// Subtracts the first element of the row and adds a parameter of the column.
    struct LessFirst<'a>(&'a [f32]);

    impl RowMap<1> for LessFirst<'_> {
        type Summary = f32;

        fn parameters(&self) -> [&[f32]; 1] {
            [self.0]
        }

        fn summary<S: Simd>(&self, row: &[f32]) -> f32 {
            row[0]
        }

        fn value<S: Simd>(&self, first: f32, x: V<S>, [more]: [V<S>; 1]) -> V<S> {
            x - first.splat() + more
        }
    }

    #[test]
    fn every_row_is_mapped_in_place_and_out_of_place() {
        for n in [0usize, 1, 7, 8, 9, 100_000, 100_003] {
            for width in [1, 7, 64, 20_000] {
                let from: Vec<f32> = (0..n).map(|i| i as f32).collect();
                let more: Vec<f32> = (0..width).map(|i| (i % 5) as f32).collect();
                let (new, summaries) = map_rows(&LessFirst(&more), &from, width);
                let expected: Vec<f32> = (0..n).map(|i| (i % width + i % width % 5) as f32).collect();
                assert_eq!(new, expected, "{n} data, rows of {width}");
                assert_eq!(summaries, (0..n).step_by(width).map(|i| i as f32).collect::<Vec<f32>>());
                let mut data = from;
                assert_eq!(map_rows_in_place(&LessFirst(&more), &mut data, width), summaries);
                assert_eq!(data, expected, "{n} data, rows of {width}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "fewer parameters than elements")]
    fn too_few_parameters_are_refused() {
        map_rows(&LessFirst(&[0.0; 4]), &[1.0; 10], 5);
    }
}
