//! Batches for Burn's own training loop.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use burn::data::dataset::DatasetError;
use burn::prelude::*;

use super::BatchSource;

/// A [`BatchSource`] as a data loader of Burn's, so that what trains with the [`Trainer`](super::Trainer) also trains under
/// `burn::train::SupervisedTraining`, with any of its execution strategies.
///
/// An epoch is a number of batches. Every call of [`DataLoader::iter`] is the next epoch of a training loader, and the same
/// epoch again of a validation loader. Burn gives each device a part of the epoch's batches.
#[derive(Debug)]
pub struct SourceLoader<S> {
    source: Arc<S>,
    device: Device,
    /// The batches of an epoch that are this loader's.
    part: Range<u64>,
    /// Batches of a whole epoch.
    length: u64,
    /// Number of the next epoch; none of a validation loader.
    epoch: Option<AtomicU64>,
}

impl<S: BatchSource> SourceLoader<S> {
    /// For training, in epochs of `length` batches. `epochs_done` is 0, or the epoch of the checkpoint to go on from.
    pub fn training(source: Arc<S>, length: u64, epochs_done: u64, device: &Device) -> Self {
        Self { source, device: device.clone(), part: 0..length, length, epoch: Some(AtomicU64::new(epochs_done)) }
    }

    /// For validation: the same `length` batches every time.
    pub fn validation(source: Arc<S>, length: u64, device: &Device) -> Self {
        Self { source, device: device.clone(), part: 0..length, length, epoch: None }
    }

    fn with(&self, part: Range<u64>, device: &Device) -> Self {
        let epoch = self.epoch.as_ref().map(|epoch| AtomicU64::new(epoch.load(Ordering::Relaxed)));
        Self { source: self.source.clone(), device: device.clone(), part, length: self.length, epoch }
    }
}

impl<S: BatchSource + 'static> DataLoader<S::Batch> for SourceLoader<S> {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<S::Batch> + 'a> {
        let epoch = self.epoch.as_ref().map_or(0, |epoch| epoch.fetch_add(1, Ordering::Relaxed));
        Box::new(Epoch { loader: self, first: epoch * self.length, at: self.part.start })
    }

    fn num_items(&self) -> usize {
        (self.part.end - self.part.start) as usize
    }

    fn to_device(&self, device: &Device) -> Arc<dyn DataLoader<S::Batch>> {
        Arc::new(self.with(self.part.clone(), device))
    }

    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<S::Batch>> {
        let at = |index: usize| (self.part.start + index as u64).min(self.part.end);
        Arc::new(self.with(at(start)..at(end), &self.device))
    }
}

/// The batches of one epoch.
struct Epoch<'a, S> {
    loader: &'a SourceLoader<S>,
    first: u64,
    at: u64,
}

impl<S: BatchSource> Iterator for Epoch<'_, S> {
    type Item = Result<S::Batch, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.loader.part.end {
            return None;
        }
        self.at += 1;
        Some(self.loader.source.batch(self.first + self.at - 1, &self.loader.device).map_err(DatasetError::new))
    }
}

impl<S: BatchSource> DataLoaderIterator<S::Batch> for Epoch<'_, S> {
    fn progress(&self) -> Progress {
        let part = &self.loader.part;
        Progress::new((self.at - part.start) as usize, (part.end - part.start) as usize, Some("batches".into()))
    }
}
