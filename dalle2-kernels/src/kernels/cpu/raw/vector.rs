//! SIMD loads, stores and reductions over slices.
//!
//! The remainder of a slice that does not fill a vector is padded with zeros.

use macerator::{Scalar, Simd, Vector};

/// A SIMD vector of f32.
pub(crate) type V<S> = Vector<S, f32>;

/// Lanes of the widest vector, AVX-512.
pub(crate) const MAX_LANES: usize = 16;
/// Independent accumulators of a reduction, which hide the latency of additions.
const ACCUMULATORS: usize = 4;
/// Number of f32 additions per lane before the lanes are added to an f64 sum.
pub(crate) const SUM_BLOCK: usize = 64;

/// Loads the first elements of a slice, padded with zeros.
#[inline(always)]
pub(crate) fn load<S: Simd>(x: &[f32]) -> V<S> {
    if x.len() >= S::lanes32() {
        // SAFETY: the slice is not shorter than the vector.
        unsafe { f32::vload_unaligned(x.as_ptr()) }
    } else {
        load_padded(x, 0.0)
    }
}

/// Loads a short slice, padded with `other`.
#[inline(always)]
fn load_padded<S: Simd>(x: &[f32], other: f32) -> V<S> {
    const { assert!(MAX_LANES * 32 == 512, "no vector has more than 512 bits") };
    let mut padded = [other; MAX_LANES];
    padded[..x.len()].copy_from_slice(x);
    assert!(S::lanes32() <= MAX_LANES, "load: a vector has more lanes than expected");
    // SAFETY: `padded` is not shorter than the vector, as asserted.
    unsafe { f32::vload_unaligned(padded.as_ptr()) }
}

/// Stores the first lanes of a vector, up to the length of `to`.
#[inline(always)]
pub(crate) fn store<S: Simd>(value: V<S>, to: &mut [f32]) {
    if to.len() >= S::lanes32() {
        // SAFETY: the slice is not shorter than the vector.
        unsafe { f32::vstore_unaligned(to.as_mut_ptr(), value) }
    } else {
        let mut padded = [0.0; MAX_LANES];
        assert!(S::lanes32() <= MAX_LANES, "store: a vector has more lanes than expected");
        // SAFETY: `padded` is not shorter than the vector, as asserted.
        unsafe { f32::vstore_unaligned(padded.as_mut_ptr(), value) };
        to.copy_from_slice(&padded[..to.len()]);
    }
}

/// Replaces each y by f(y).
#[inline(always)]
pub(crate) fn update<S: Simd>(y: &mut [f32], f: impl Fn(V<S>) -> V<S>) {
    for y in y.chunks_mut(S::lanes32()) {
        store(f(load(y)), y);
    }
}

/// Replaces each y by f(y, x).
#[inline(always)]
pub(crate) fn update_with<S: Simd>(y: &mut [f32], x: &[f32], f: impl Fn(V<S>, V<S>) -> V<S>) {
    for (y, x) in y.chunks_mut(S::lanes32()).zip(x.chunks(S::lanes32())) {
        store(f(load(y), load(x)), y);
    }
}

/// Σ f(x), in f32 over blocks of [`SUM_BLOCK`] and in f64 over the blocks.
#[inline(always)]
pub(crate) fn sum<S: Simd>(x: &[f32], f: impl Fn(V<S>) -> V<S>) -> f64 {
    sum_pairs::<S>(x, x, |x, _| f(x))
}

/// Σ f(x, y), like [`sum`].
#[inline(always)]
pub(crate) fn sum_pairs<S: Simd>(x: &[f32], y: &[f32], f: impl Fn(V<S>, V<S>) -> V<S>) -> f64 {
    let lanes = S::lanes32();
    let mut total = 0.0;
    for (x, y) in x.chunks(ACCUMULATORS * SUM_BLOCK * lanes).zip(y.chunks(ACCUMULATORS * SUM_BLOCK * lanes)) {
        let mut sums = [0.0f32.splat::<S>(); ACCUMULATORS];
        let (xs, ys) = (x.chunks_exact(ACCUMULATORS * lanes), y.chunks_exact(ACCUMULATORS * lanes));
        let (x, y) = (xs.remainder(), ys.remainder());
        for (x, y) in xs.zip(ys) {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum += f(load(&x[i * lanes..]), load(&y[i * lanes..]));
            }
        }
        let (xs, ys) = (x.chunks_exact(lanes), y.chunks_exact(lanes));
        let (x, y) = (xs.remainder(), ys.remainder());
        for (x, y) in xs.zip(ys) {
            sums[0] += f(load(x), load(y));
        }
        if !x.is_empty() {
            let mut last = [0.0; MAX_LANES];
            store(f(load(x), load(y)), &mut last[..lanes]);
            total += last[..x.len()].iter().map(|value| f64::from(*value)).sum::<f64>();
        }
        let [a, b, c, d] = sums;
        total += f64::from(((a + b) + (c + d)).reduce_add());
    }
    total
}

/// The maximum, or −∞ of an empty slice.
#[inline(always)]
pub(crate) fn maximum<S: Simd>(x: &[f32]) -> f32 {
    let lanes = S::lanes32();
    let mut maxima = [f32::NEG_INFINITY.splat::<S>(); ACCUMULATORS];
    let chunks = x.chunks_exact(ACCUMULATORS * lanes);
    let rest = chunks.remainder();
    for x in chunks {
        for (i, maxima) in maxima.iter_mut().enumerate() {
            *maxima = load::<S>(&x[i * lanes..]).max(*maxima);
        }
    }
    for x in rest.chunks(lanes) {
        let x = if x.len() == lanes { load::<S>(x) } else { load_padded(x, f32::NEG_INFINITY) };
        maxima[0] = x.max(maxima[0]);
    }
    let [a, b, c, d] = maxima;
    a.max(b).max(c.max(d)).reduce_max()
}

#[cfg(test)]
mod tests {
    use macerator::{Scalar, Simd, WithSimd};

    use super::super::super::parallel::vectorized;
    use super::{maximum, sum, sum_pairs, update, update_with};

    struct Everything<'a>(&'a [f32], &'a mut [f32]);

    impl WithSimd for Everything<'_> {
        type Output = [f64; 3];

        #[inline(always)]
        fn with_simd<S: Simd>(self) -> [f64; 3] {
            let Self(x, y) = self;
            update::<S>(y, |y| y + y);
            update_with::<S>(y, x, |y, x| y - x);
            let one = 1.0.splat();
            [sum::<S>(x, |x| x + one), sum_pairs::<S>(x, y, |x, y| x * y), f64::from(maximum::<S>(x))]
        }
    }

    #[test]
    fn every_element_counts_once_at_any_length() {
        for n in (0..70).chain([255, 4096, 4097, 5003]) {
            // Small integers, whose sums are exact.
            let x: Vec<f32> = (0..n).map(|i| (i * 7919 % 13) as f32 - 14.0).collect();
            let before: Vec<f32> = (0..n).map(|i| (i * 104_729 % 11) as f32).collect();
            let mut y = before.clone();
            let [total, product, maxima] = vectorized(Everything(&x, &mut y));
            let expected: Vec<f32> = before.iter().zip(&x).map(|(y, x)| 2.0 * y - x).collect();
            assert_eq!(y, expected, "{n} values");
            assert_eq!(total, x.iter().map(|x| f64::from(*x + 1.0)).sum::<f64>(), "{n} values");
            assert_eq!(product, x.iter().zip(&y).map(|(x, y)| f64::from(x * y)).sum::<f64>(), "{n} values");
            assert_eq!(maxima as f32, x.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b)), "{n} values");
        }
    }
}
