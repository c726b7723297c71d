//! Batches computed ahead on a worker thread, and the order in which they visit a data set.

use std::sync::{Arc, Mutex, mpsc};
use std::thread::{Scope, ScopedJoinHandle};

use burn::prelude::*;
use dalle2_core::train::{BatchSource, panic_message, step_rng};
use rand::seq::SliceRandom;

use dalle2_core::{Error, Result};

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
}
