//! Parallel loops with a minimum of work per thread, and run-time dispatch to the instruction set.

use macerator::{AutoArch, WithSimd};
use rayon::prelude::*;

/// Minimum number of elements per thread, tuned with `cargo bench -p dalle2-kernels --bench ops`.
pub(crate) const MIN_PARALLEL_LEN: usize = 16 * 1024;

/// Runs a kernel compiled for the best instruction set of the processor.
#[inline]
pub(crate) fn vectorized<K: WithSimd>(kernel: K) -> K::Output {
    AutoArch::new().dispatch(kernel)
}

/// Calls `f(index, item)` for every item, in parallel if `elements`, the total amount of work, is large enough.
pub(crate) fn for_each<I>(items: I, elements: usize, f: impl Fn(usize, I::Item) + Sync + Send)
where
    I: IndexedParallelIterator,
{
    items.enumerate().with_min_len(min_len(elements)).for_each(|(i, item)| f(i, item));
}

/// Calls `f` on matching chunks of both slices.
pub(crate) fn zip_chunks(to: &mut [f32], from: &[f32], f: impl Fn(&mut [f32], &[f32]) + Sync + Send) {
    let n = to.len();
    let chunks = to.par_chunks_mut(MIN_PARALLEL_LEN).zip(from.par_chunks(MIN_PARALLEL_LEN));
    for_each(chunks, n, |_, (to, from)| f(to, from));
}

/// Calls `f(index, chunk)` for each chunk of the slice, in parallel if it is large enough, and collects the results.
pub(crate) fn in_place<R: Send>(
    x: &mut [f32],
    chunk: usize,
    f: impl Fn(usize, &mut [f32]) -> R + Sync + Send,
) -> Vec<R> {
    let min_len = min_len(x.len());
    x.par_chunks_mut(chunk).enumerate().with_min_len(min_len).map(|(index, chunk)| f(index, chunk)).collect()
}

/// Minimum number of items per task for a total of `elements`: all items if the work is too small to divide.
pub(crate) fn min_len(elements: usize) -> usize {
    if elements < 2 * MIN_PARALLEL_LEN { usize::MAX } else { 1 }
}
