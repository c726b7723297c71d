//! A modified copy in memory that is not zeroed first.

use rayon::prelude::*;

use super::super::parallel::min_len;

/// Copies `from` in chunks, calls `f(index, chunk)` on each copy while it is cached, in parallel if there is enough work,
/// and returns the copy and the results of `f`.
pub(crate) fn copy_and_map<R: Send>(
    from: &[f32],
    chunk: usize,
    f: impl Fn(usize, &mut [f32]) -> R + Sync + Send,
) -> (Vec<f32>, Vec<R>) {
    let mut copy = Vec::with_capacity(from.len());
    let results = copy.spare_capacity_mut()[..from.len()]
        .par_chunks_mut(chunk)
        .zip(from.par_chunks(chunk))
        .enumerate()
        .with_min_len(min_len(from.len()))
        .map(|(index, (to, from))| f(index, to.write_copy_of_slice(from)))
        .collect();
    // SAFETY: the chunks cover the first `from.len()` elements of the capacity, and each was written.
    unsafe { copy.set_len(from.len()) };
    (copy, results)
}

#[cfg(test)]
mod tests {
    use super::copy_and_map;

    #[test]
    fn every_chunk_is_copied_and_modified() {
        for n in [0usize, 1, 7, 8, 9, 100_000, 100_003] {
            let from: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let (copy, sizes) = copy_and_map(&from, 8, |index, chunk| {
                chunk.iter_mut().for_each(|x| *x += index as f32);
                chunk.len()
            });
            let expected: Vec<f32> = from.iter().enumerate().map(|(i, x)| x + (i / 8) as f32).collect();
            assert_eq!(copy, expected);
            assert_eq!((sizes.len(), sizes.iter().sum::<usize>()), (n.div_ceil(8), n));
        }
    }
}
