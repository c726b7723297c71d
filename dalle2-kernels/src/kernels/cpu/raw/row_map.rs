//! Maps of rows, into new memory without clearing it first, or in place.

use std::mem::MaybeUninit;

use macerator::{Scalar, Simd, WithSimd};
use rayon::prelude::*;

use super::super::parallel::{min_len, vectorized};
use super::vector::{MOST, V, load, store};

/// Values that one task takes, if there are so many: at least, and at most.
const TASK: [usize; 2] = [8 * 1024, 64 * 1024];
/// Tasks that are better than fewer.
const TASKS: usize = 8;

/// A map of the values of a row that may depend on a summary of all of them, and on N more numbers for each place.
pub trait RowMap<const N: usize>: Sync {
    /// What the map needs to know of a row.
    type Summary: Copy + Send;

    /// The numbers of each place, at least as many as a row has values.
    fn parameters(&self) -> [&[f32]; N];

    /// The summary of a row.
    fn summary<S: Simd>(&self, row: &[f32]) -> Self::Summary;

    /// The new values for some values and their parameters.
    fn value<S: Simd>(&self, summary: Self::Summary, x: V<S>, parameters: [V<S>; N]) -> V<S>;
}

/// The rows of `width` values, the last of which may be shorter, after the map, and their summaries.
///
/// # Panics
/// If the parameters are fewer than the values of a row.
pub fn mapped<M: RowMap<N>, const N: usize>(map: &M, from: &[f32], width: usize) -> (Vec<f32>, Vec<M::Summary>) {
    let mut new = Vec::with_capacity(from.len());
    let task = task(width, from.len());
    let summaries: Vec<Vec<M::Summary>> = new.spare_capacity_mut()[..from.len()]
        .par_chunks_mut(task)
        .zip(from.par_chunks(task))
        .with_min_len(min_len(from.len()))
        .map(|(to, from)| vectorized(New::<M, N> { map, from, to, width }))
        .collect();
    // SAFETY: the chunks cover the first `from.len()` values of the capacity, and `New` wrote every value of a chunk.
    unsafe { new.set_len(from.len()) };
    (new, summaries.into_iter().flatten().collect())
}

/// [`mapped`] in place.
pub fn map<M: RowMap<N>, const N: usize>(map: &M, values: &mut [f32], width: usize) -> Vec<M::Summary> {
    let min_len = min_len(values.len());
    let tasks = values.par_chunks_mut(task(width, values.len())).with_min_len(min_len);
    let summaries: Vec<Vec<M::Summary>> =
        tasks.map(|values| vectorized(InPlace::<M, N> { map, values, width })).collect();
    summaries.into_iter().flatten().collect()
}

/// Values of a task, of so many: whole rows.
fn task(width: usize, values: usize) -> usize {
    ((values / TASKS).clamp(TASK[0], TASK[1]) / width).max(1) * width
}

struct New<'a, M, const N: usize> {
    map: &'a M,
    from: &'a [f32],
    to: &'a mut [MaybeUninit<f32>],
    width: usize,
}

impl<M: RowMap<N>, const N: usize> WithSimd for New<'_, M, N> {
    type Output = Vec<M::Summary>;

    /// Writes every value of `to`.
    #[inline(always)]
    fn with_simd<S: Simd>(self) -> Self::Output {
        assert_eq!(self.from.len(), self.to.len(), "mapped: as many values as places");
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

struct InPlace<'a, M, const N: usize> {
    map: &'a M,
    values: &'a mut [f32],
    width: usize,
}

impl<M: RowMap<N>, const N: usize> WithSimd for InPlace<'_, M, N> {
    type Output = Vec<M::Summary>;

    #[inline(always)]
    fn with_simd<S: Simd>(self) -> Self::Output {
        let mut summaries = Vec::with_capacity(self.values.len().div_ceil(self.width));
        for row in self.values.chunks_mut(self.width) {
            let summary = self.map.summary::<S>(row);
            let (place, count) = (row.as_mut_ptr(), row.len());
            // SAFETY: `row` has so many values, for reading and writing.
            unsafe { map_row::<S, M, N>(self.map, summary, place, place, count) };
            summaries.push(summary);
        }
        summaries
    }
}

/// Writes the new values of a row.
///
/// # Panics
/// If the parameters are fewer than the values, before anything is written.
///
/// # Safety
/// `from` must be valid for reading `count` values and `to` for writing them; they may be the same place, and must not
/// overlap otherwise.
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
    assert!(parameters.iter().all(|values| values.len() >= count), "mapped: fewer parameters than values");
    let whole = count / lanes * lanes;
    for at in (0..whole).step_by(lanes) {
        // SAFETY: `at + lanes` is at most `count`, which neither the places nor the parameters fall short of. The
        // values at `at` are read before they are written.
        unsafe {
            let parameters = parameters.map(|values| f32::vload_unaligned(values.as_ptr().add(at)));
            let value = map.value::<S>(summary, f32::vload_unaligned(from.add(at)), parameters);
            f32::vstore_unaligned(to.add(at), value);
        }
    }
    if whole < count {
        // SAFETY: the values from `whole` up to `count` can be read; the slice is gone before they are written.
        let last = load(unsafe { std::slice::from_raw_parts(from.add(whole), count - whole) });
        let value = map.value::<S>(summary, last, parameters.map(|values| load(&values[whole..count])));
        let mut values = [0.0; MOST];
        store(value, &mut values[..lanes]);
        // SAFETY: the values from `whole` up to `count` can be written, and are fewer than `lanes`.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), to.add(whole), count - whole) };
    }
}

#[cfg(test)]
mod tests {
    use macerator::{Scalar, Simd};

    use super::{RowMap, V, map, mapped};

    /// Each value less the first of its row, and more by a number for its column.
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
    fn every_row_is_mapped_both_ways() {
        for n in [0usize, 1, 7, 8, 9, 100_000, 100_003] {
            for width in [1, 7, 64, 20_000] {
                let from: Vec<f32> = (0..n).map(|i| i as f32).collect();
                let more: Vec<f32> = (0..width).map(|i| (i % 5) as f32).collect();
                let (new, summaries) = mapped(&LessFirst(&more), &from, width);
                let expected: Vec<f32> = (0..n).map(|i| (i % width + i % width % 5) as f32).collect();
                assert_eq!(new, expected, "{n} values, rows of {width}");
                assert_eq!(summaries, (0..n).step_by(width).map(|i| i as f32).collect::<Vec<f32>>());
                let mut values = from;
                assert_eq!(map(&LessFirst(&more), &mut values, width), summaries);
                assert_eq!(values, expected, "{n} values, rows of {width}");
            }
        }
    }
    #[test]
    #[should_panic(expected = "fewer parameters than values")]
    fn too_few_parameters_are_refused() {
        mapped(&LessFirst(&[0.0; 4]), &[1.0; 10], 5);
    }
}
