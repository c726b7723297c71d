//! Sharing work between threads, and the run-time choice of the instruction set.

use macerator::{AutoArch, WithSimd};
use rayon::prelude::*;

/// Elements below which a second thread costs more than it saves.
const WORTH_A_THREAD: usize = 16 * 1024;

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
    let items = items.enumerate();
    if elements < 2 * WORTH_A_THREAD {
        items.with_min_len(usize::MAX).for_each(|(i, item)| f(i, item));
    } else {
        items.for_each(|(i, item)| f(i, item));
    }
}

/// Calls `f` on matching chunks of both slices.
pub fn zip_chunks(to: &mut [f32], from: &[f32], f: impl Fn(&mut [f32], &[f32]) + Sync + Send) {
    let n = to.len();
    let chunks = to.par_chunks_mut(WORTH_A_THREAD).zip(from.par_chunks(WORTH_A_THREAD));
    for_each(chunks, n, |_, (to, from)| f(to, from));
}

/// Calls `f` on chunks of the slice.
pub fn chunks(x: &mut [f32], f: impl Fn(&mut [f32]) + Sync + Send) {
    let n = x.len();
    for_each(x.par_chunks_mut(WORTH_A_THREAD), n, |_, x| f(x));
}
