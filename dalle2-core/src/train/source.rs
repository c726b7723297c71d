//! Where batches come from: pure functions of the step.

use burn::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::Result;

/// A source of batches: one for each step.
///
/// A batch depends on nothing but the step number and what the source was built with, so the position in the data is
/// the step and a resumed run sees exactly the batches that an uninterrupted one. Batches are computed
/// on another thread while the device trains: use [`step_rng`] for random numbers, never the random numbers of the
/// device, which belong to dropout.
pub trait BatchSource: Send + Sync {
    /// The batch of the model's [`TrainTask`](super::TrainTask).
    type Batch: Send + 'static;

    /// The batch number `step`, counted from 0 over all batches of the run; with accumulation, several make one
    /// optimizer step. `device` is the model's, with autodiff, and the tensors of the batch should be made on it.
    /// Frozen networks run without it (`device.clone().inner()`), and their results move over by `to_device`.
    ///
    /// # Errors
    /// If data cannot be read. The run writes a checkpoint and ends with this error, so a source should replace an item
    /// that it cannot read, and log it.
    fn batch(&self, step: u64, device: &Device) -> Result<Self::Batch>;
}

/// Mixes a seed with two numbers (SplitMix64, Steele et al. 2014), so that neighbouring numbers give unrelated seeds.
pub fn mix_seed(seed: u64, stream: u64, index: u64) -> u64 {
    [stream, index].into_iter().fold(finalize(seed), |state, value| {
        finalize(state.wrapping_add(value.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(0x9e37_79b9_7f4a_7c15))
    })
}

fn finalize(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Returns the random numbers of a step: a function of (seed, stream, step) alone. Streams separate the
/// uses, for example timesteps, noise and caption dropout.
pub fn step_rng(seed: u64, stream: u64, step: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(mix_seed(seed, stream, step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_of_neighbours_share_no_pattern() {
        let seeds: std::collections::HashSet<u64> =
            (0..4).flat_map(|a| (0..4).flat_map(move |b| (0..4).map(move |c| mix_seed(a, b, c)))).collect();
        assert_eq!(seeds.len(), 64);
    }
}
