//! Sharing work between threads, and the run-time choice of the instruction set.

use macerator::{AutoArch, WithSimd};
use rayon::prelude::*;

/// Elements below which a second thread costs more than it saves.
pub const WORTH_A_THREAD: usize = 16 * 1024;

/// Runs a kernel compiled for the best instruction set of this machine.
#[inline]
pub fn vectorized<K: WithSimd>(kernel: K) -> K::Output {
    AutoArch::new().dispatch(kernel)
}

/// Calls `f(index, item)` for every item, on several threads if `elements`, the total amount of work, is worth it.
pub fn for_each<I>(items: I, elements: usize, f: impl Fn(usize, I::Item) + Sync + Send)
where
    I: IndexedParallelIterator,
{
    items.enumerate().with_min_len(min_len(elements)).for_each(|(i, item)| f(i, item));
}

/// Calls `f` on matching chunks of both slices.
pub fn zip_chunks(to: &mut [f32], from: &[f32], f: impl Fn(&mut [f32], &[f32]) + Sync + Send) {
    let n = to.len();
    let chunks = to.par_chunks_mut(WORTH_A_THREAD).zip(from.par_chunks(WORTH_A_THREAD));
    for_each(chunks, n, |_, (to, from)| f(to, from));
}

/// Calls `f(index, chunk)` on each chunk of the slice, on several threads if that pays, and returns what it returned.
pub fn in_place<R: Send>(x: &mut [f32], chunk: usize, f: impl Fn(usize, &mut [f32]) -> R + Sync + Send) -> Vec<R> {
    let min_len = min_len(x.len());
    x.par_chunks_mut(chunk).enumerate().with_min_len(min_len).map(|(index, chunk)| f(index, chunk)).collect()
}

/// The least number of items of a task, where `elements` is the total amount of work: all, if a second thread would
/// cost more than it saves.
pub fn min_len(elements: usize) -> usize {
    if elements < 2 * WORTH_A_THREAD { usize::MAX } else { 1 }
}
