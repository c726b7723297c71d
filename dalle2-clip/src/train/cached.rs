//! Gradient caching (Gao et al. 2021, arXiv 2101.06983): the gradients of a batch whose embeddings are not all computed at
//! once, because it does not fit in memory or is divided among devices.
//!
//! Each device embeds its share of the pairs, in parts. The embeddings meet on the first device, where the loss is
//! differentiated with respect to them; then each device carries the gradients of its share to the weights.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::prelude::*;
use burn::tensor::FloatDType;
use dalle2_core::train::{DeviceThreads, StepGradients, mix_seed};

use super::task::{ImageTower, matched};
use super::{ClipBatch, ClipTask};
use crate::TokenBatch;

/// Stream of dropout, see [`mix_seed`].
pub(super) const DROPOUT: u64 = 0x6361_6368_6564;

/// Held while dropout draws: the devices of a backend share a generator.
static DRAWING: Mutex<()> = Mutex::new(());

/// A training step with the batch in parts, with the gradients of `scale` times the loss.
///
/// # Panics
/// When the model does, on whichever device.
pub(super) fn gradients(task: &ClipTask, batch: ClipBatch, scale: f64) -> StepGradients {
    let (b, main, threads) = (batch.len(), batch.pixels.device(), task.threads());
    let shares = shares(b, threads.map_or(1, |threads| threads.devices().len()), task.options().chunk);
    let jobs = shares.iter().map(|share| {
        let (task, batch, share, main) = (task.clone(), batch.part(&share.rows), share.clone(), main.clone());
        let moves = threads.is_some();
        move |device: &Device| {
            let task = if moves { task.fork(device) } else { task };
            Embedded::new(task, batch.to_device(device), share.parts, &main)
        }
    });
    let embedded = everywhere(threads, &main, jobs);

    let [images, texts] = [0, 1].map(|side| embedded.iter().map(|e| e.embeddings[side].clone()).collect());
    let leaves = [images, texts].map(|parts: Vec<_>| Tensor::cat(parts, 0).detach().require_grad());
    let rows: Vec<Range<usize>> = shares.iter().flat_map(Share::rows_of_parts).collect();
    let Loss { value, hits, of_embeddings, mut grads } = loss(task, &leaves, &batch, &rows, scale);

    let jobs = embedded.into_iter().zip(&shares).map(|(embedded, share)| {
        let of_embeddings = of_embeddings.clone().map(|of| of.slice_dim(0, share.rows.clone()));
        move |device: &Device| embedded.backward(of_embeddings.map(|of| of.to_device(&device.clone().inner())))
    });
    for of_share in everywhere(threads, &main, jobs) {
        grads.accumulate(task, of_share.to_device(&main, task));
    }
    StepGradients { grads: grads.grads(), output: task.report(value, hits / b as f64) }
}

/// The results of the jobs, the n-th one computed on the n-th device, or of the only job on `main`.
fn everywhere<T, F>(threads: Option<&DeviceThreads>, main: &Device, jobs: impl Iterator<Item = F>) -> Vec<T>
where
    T: Send + 'static,
    F: FnOnce(&Device) -> T + Send + 'static,
{
    match threads {
        None => jobs.map(|job| job(main)).collect(),
        Some(threads) => threads.run(jobs).unwrap_or_else(|error| panic!("{error}")),
    }
}

/// What one device computes of a batch.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Share {
    /// Its pairs of the batch.
    rows: Range<usize>,
    /// Its parts.
    parts: Vec<Part>,
}

/// Pairs that go through the towers at once.
#[derive(Debug, Clone, PartialEq)]
struct Part {
    /// Its number among the parts of the whole batch.
    number: usize,
    /// Its pairs, counted from the first of the share.
    rows: Range<usize>,
}

impl Share {
    /// Number of its pairs.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The parts' pairs, counted from the first of the batch.
    pub(super) fn rows_of_parts(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.parts.iter().map(|part| self.rows.start + part.rows.start..self.rows.start + part.rows.end)
    }
}

/// The shares of `devices` in a batch of `b` pairs, nearly equal, in parts of `chunk`. Devices that would have no pair have
/// no share.
pub(super) fn shares(b: usize, devices: usize, chunk: Option<usize>) -> Vec<Share> {
    let mut number = 0;
    let bounds = (0..devices).map(|i| i * b / devices..(i + 1) * b / devices).filter(|rows| !rows.is_empty());
    let share = |rows: Range<usize>| {
        let chunk = chunk.unwrap_or(rows.len());
        let starts = (0..rows.len()).step_by(chunk);
        let parts = starts.map(|start| {
            number += 1;
            Part { number: number - 1, rows: start..(start + chunk).min(rows.len()) }
        });
        Share { parts: parts.collect(), rows }
    };
    bounds.map(share).collect()
}

/// A share between the two passes over it.
struct Embedded {
    /// The task on the device of the share.
    task: ClipTask,
    /// The pairs of the share, there.
    batch: ClipBatch,
    parts: Vec<Part>,
    /// Embeddings of images and captions, `[b, D]` in f32 on the first device, without a graph.
    embeddings: [Tensor<2>; 2],
    /// The same with their graph, for a share of a single part: there is nothing to gain from computing it again.
    kept: Option<[Tensor<2>; 2]>,
}

impl Embedded {
    /// The first pass.
    fn new(task: ClipTask, batch: ClipBatch, parts: Vec<Part>, main: &Device) -> Self {
        let plain = |embed: Tensor<2>| embed.cast(FloatDType::F32).detach();
        let (embeddings, kept) = if let [part] = parts.as_slice() {
            let kept = embed(&task, &batch, part);
            (kept.clone().map(plain), Some(kept))
        } else {
            // With autodiff, so that dropout acts, and without parameters to follow, so that nothing is kept.
            let untracked = task.clone().no_grad();
            let (images, texts): (Vec<_>, Vec<_>) = parts
                .iter()
                .map(|part| {
                    let [image, text] = embed(&untracked, &batch, part);
                    (image, text)
                })
                .unzip();
            ([images, texts].map(|parts| plain(Tensor::cat(parts, 0))), None)
        };
        Self { embeddings: embeddings.map(|embed| embed.to_device(main)), task, batch, parts, kept }
    }

    /// The second pass: the gradients of the weights from those of the embeddings, `[b, D]`, on the device of the share.
    fn backward(mut self, of_embeddings: [Tensor<2>; 2]) -> GradientsParams {
        let mut grads = GradientsAccumulator::new();
        for part in &self.parts {
            let [image, text] = self.kept.take().unwrap_or_else(|| embed(&self.task, &self.batch, part));
            let [of_image, of_text] = of_embeddings.clone().map(|of| of.slice_dim(0, part.rows.clone()));
            let along = |embed: Tensor<2>, of: Tensor<2>| (embed.cast(FloatDType::F32) * of).sum();
            let total = match self.task.options().image_tower {
                ImageTower::Trained => along(image, of_image) + along(text, of_text),
                ImageTower::Locked => along(text, of_text),
            };
            grads.accumulate(&self.task, GradientsParams::from_grads(total.backward(), &self.task));
        }
        grads.grads()
    }
}

/// Embeddings of the images and captions of a part. Dropout draws from the device, so every pass over a part begins with
/// the same seed.
fn embed(task: &ClipTask, share: &ClipBatch, part: &Part) -> [Tensor<2>; 2] {
    let batch = share.part(&part.rows);
    let forward = || [task.embed_images(&batch), task.embed_captions(&batch)];
    if !task.has_dropout() {
        return forward();
    }
    let _alone = DRAWING.lock().unwrap_or_else(PoisonError::into_inner);
    batch.pixels.device().seed(mix_seed(batch.seed, DROPOUT, part.number as u64));
    forward()
}

/// The loss of the embeddings, and where it leads.
struct Loss {
    /// `[1]`, not scaled.
    value: Tensor<1>,
    /// Number of images whose nearest caption is of their class, `[1]`.
    hits: Tensor<1>,
    /// Gradients of the image and the text embeddings, `[B, D]`, without autodiff.
    of_embeddings: [Tensor<2>; 2],
    /// Gradients of the loss's own parameters.
    grads: GradientsAccumulator<ClipTask>,
}

/// In the same parts, so that the logits in memory are those of one part against all. The gradients are those of `scale`
/// times the loss.
fn loss(task: &ClipTask, leaves: &[Tensor<2>; 2], batch: &ClipBatch, parts: &[Range<usize>], scale: f64) -> Loss {
    let device = leaves[0].device().inner();
    let zero = || Tensor::<1>::zeros([1], &device);
    let mut sum = Loss {
        value: zero(),
        hits: zero(),
        of_embeddings: [0, 1].map(|side: usize| leaves[side].clone().without_autodiff().zeros_like()),
        grads: GradientsAccumulator::new(),
    };
    for rows in parts {
        let [image, text] = leaves.clone();
        let share = task.objective().share(image, text, Some(&batch.targets), rows.clone());
        sum.value = sum.value + share.loss.clone().without_autodiff();
        sum.hits = sum.hits + matched(share.logits, &batch.targets, rows.clone());
        let mut grads = (share.loss * scale).backward();
        for (total, leaf) in sum.of_embeddings.iter_mut().zip(leaves) {
            if let Some(grad) = leaf.grad_remove(&mut grads) {
                *total = total.clone() + grad;
            }
        }
        sum.grads.accumulate(task, GradientsParams::from_grads(grads, task));
    }
    sum
}

impl ClipBatch {
    /// The pairs `rows`, with captions as wide as in the whole batch.
    pub(super) fn part(&self, rows: &Range<usize>) -> Self {
        if rows.len() == self.len() {
            return self.clone();
        }
        Self {
            pixels: self.pixels.clone().slice_dim(0, rows.clone()),
            captions: TokenBatch {
                rows: self.captions.rows.clone().slice_dim(0, rows.clone()),
                lengths: self.captions.lengths[rows.clone()].to_vec(),
            },
            targets: self.targets[rows.clone()].to_vec(),
            patches: self.patches.clone().map(|patches| patches.slice_dim(0, rows.clone())),
            seed: self.seed,
        }
    }

    fn to_device(&self, device: &Device) -> Self {
        Self {
            pixels: self.pixels.clone().to_device(device),
            captions: TokenBatch {
                rows: self.captions.rows.clone().to_device(device),
                lengths: self.captions.lengths.clone(),
            },
            targets: self.targets.clone(),
            patches: self.patches.clone().map(|patches| patches.to_device(device)),
            seed: self.seed,
        }
    }
}
