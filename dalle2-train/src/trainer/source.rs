//! Batches computed ahead on a worker thread.

use std::sync::mpsc;
use std::thread::{Scope, ScopedJoinHandle};

use burn::prelude::*;
use dalle2_core::train::{BatchSource, panic_message};

use dalle2_core::{Error, Result};

/// Batches computed ahead on a worker thread that waits while `ahead` of them are ready.
pub(super) struct Prefetch<'scope, B> {
    receiver: mpsc::Receiver<Result<B>>,
    worker: Option<ScopedJoinHandle<'scope, ()>>,
}

impl<'scope, B: Send + 'static> Prefetch<'scope, B> {
    /// Starts computing the batches of `steps`.
    pub(super) fn start<'env, S: BatchSource<Batch = B> + ?Sized>(
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
