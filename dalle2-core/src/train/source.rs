//! Where batches come from: pure functions of the step, computed ahead on a worker thread.

use std::sync::{Arc, Mutex, mpsc};
use std::thread::{Scope, ScopedJoinHandle};

use burn::prelude::*;
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::threads::panic_message;
use crate::{Error, Result};

/// Gives the batch of every step.
///
/// A batch depends on nothing but the step number and what the source was built with, so the position in the data is
/// the step and a resumed run sees exactly the batches that an uninterrupted one would have seen. Batches are computed
/// on another thread while the device trains: use [`step_rng`] for random numbers, never the random numbers of the
/// device, which belong to dropout.
pub trait BatchSource: Send + Sync {
    /// What the model's [`TrainStep`](burn::train::TrainStep) takes.
    type Batch: Send + 'static;

    /// The batch number `step`, counted from 0 over all batches of the run; with accumulation, several make one
    /// optimizer step. `device` is the model's, with autodiff, and the tensors of the batch should be made on it.
    /// Frozen networks run without it (`device.clone().inner()`), and their results move over by `to_device`.
    ///
    /// # Errors
    /// When data cannot be read. The run writes a checkpoint and stops with this error, so a source that can do without
    /// an item should log it and take another.
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

/// Random numbers for one step: the same for the same (seed, stream, step), whatever ran before. Streams separate the
/// uses, for example timesteps, noise and caption dropout.
pub fn step_rng(seed: u64, stream: u64, step: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(mix_seed(seed, stream, step))
}

/// Visits the indices of a data set in epochs, every epoch in another order, as a pure function of the step.
///
/// Epochs follow one another without a gap, so a batch may hold the end of one and the start of the next, and every
/// batch is full.
#[derive(Debug)]
pub struct ShuffledIndices {
    len: usize,
    seed: u64,
    recent: Mutex<Vec<(u64, Arc<[u32]>)>>,
}

impl ShuffledIndices {
    /// Of a data set of `len` items.
    ///
    /// # Errors
    /// When there are no items, or more than 2³² − 1.
    pub fn new(len: usize, seed: u64) -> Result<Self> {
        if len == 0 || u32::try_from(len).is_err() {
            return Err(Error::Input(format!(
                "a data set of {len} items cannot be trained on: it needs 1 to 4294967295"
            )));
        }
        Ok(Self { len, seed, recent: Mutex::new(Vec::new()) })
    }

    /// The indices of batch `step`, each below the length of the data set.
    pub fn batch(&self, step: u64, batch_size: usize) -> Vec<usize> {
        let start = step * batch_size as u64;
        (start..start + batch_size as u64).map(|position| self.at(position)).collect()
    }

    fn at(&self, position: u64) -> usize {
        let len = self.len as u64;
        self.epoch(position / len)[(position % len) as usize] as usize
    }

    /// The order of an epoch. The two used last are kept, since a batch may touch two.
    fn epoch(&self, epoch: u64) -> Arc<[u32]> {
        let mut recent = self.recent.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some((_, order)) = recent.iter().find(|(number, _)| *number == epoch) {
            return order.clone();
        }
        let mut order: Vec<u32> = (0..self.len as u32).collect();
        order.shuffle(&mut step_rng(self.seed, 0x006f_7264_6572, epoch));
        let order: Arc<[u32]> = order.into();
        if recent.len() == 2 {
            recent.remove(0);
        }
        recent.push((epoch, order.clone()));
        order
    }
}

/// Batches computed ahead on a worker thread that waits while `ahead` of them are ready.
pub(super) struct Prefetch<'scope, B> {
    receiver: mpsc::Receiver<Result<B>>,
    worker: Option<ScopedJoinHandle<'scope, ()>>,
}

impl<'scope, B: Send + 'static> Prefetch<'scope, B> {
    /// Starts computing the batches of `steps`.
    pub(super) fn start<'env, S: BatchSource<Batch = B>>(
        scope: &'scope Scope<'scope, 'env>,
        source: &'env S,
        device: Device,
        steps: impl Iterator<Item = u64> + Send + 'scope,
        ahead: usize,
    ) -> Result<Self> {
        let (sender, receiver) = mpsc::sync_channel(ahead);
        let work = move || {
            for step in steps {
                let batch = source.batch(step, &device);
                let failed = batch.is_err();
                if sender.send(batch).is_err() || failed {
                    return;
                }
            }
        };
        let worker = std::thread::Builder::new()
            .name("batches".into())
            .spawn_scoped(scope, work)
            .map_err(|e| Error::Training(format!("cannot start the thread that prepares batches: {e}")))?;
        Ok(Self { receiver, worker: Some(worker) })
    }

    /// The next batch.
    pub(super) fn next(&mut self) -> Result<B> {
        self.receiver.recv().unwrap_or_else(|_| {
            let panic = self.worker.take().and_then(|worker| worker.join().err());
            let message = panic.map_or_else(|| "no message".into(), |panic| panic_message(panic.as_ref()));
            Err(Error::Training(format!("the batch source panicked: {message}")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_is_a_permutation_and_orders_differ() {
        let order = ShuffledIndices::new(10, 7).unwrap();
        let steps: Vec<usize> = (0..10).flat_map(|step| order.batch(step, 4)).collect();
        let epochs: Vec<&[usize]> = steps.chunks(10).collect();
        for epoch in &epochs {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(epochs[0], epochs[1]);
    }

    #[test]
    fn the_order_is_a_function_of_the_step_alone() {
        let walked = ShuffledIndices::new(10, 7).unwrap();
        let batches: Vec<_> = (0..40).map(|step| walked.batch(step, 3)).collect();
        let jumped = ShuffledIndices::new(10, 7).unwrap();
        assert_eq!(jumped.batch(33, 3), batches[33]);
        assert_eq!(jumped.batch(2, 3), batches[2]);
        assert_ne!(ShuffledIndices::new(10, 8).unwrap().batch(2, 3), batches[2]);
        assert!(ShuffledIndices::new(0, 0).is_err());
    }

    #[test]
    fn seeds_of_neighbours_share_no_pattern() {
        let seeds: std::collections::HashSet<u64> =
            (0..4).flat_map(|a| (0..4).flat_map(move |b| (0..4).map(move |c| mix_seed(a, b, c)))).collect();
        assert_eq!(seeds.len(), 64);
    }
}
