//! Gradient caching (Gao et al. 2021, arXiv 2101.06983): the gradients of a batch that exceeds the memory of one forward
//! pass or is divided among devices.
//!
//! Each device embeds its share of the pairs in chunks. The first device gathers the embeddings and differentiates the loss
//! with respect to them; then each device propagates the gradients of its embeddings to the weights.

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

/// Held during forward passes with dropout: the devices of a backend share a random generator.
static GENERATOR: Mutex<()> = Mutex::new(());

/// Computes the gradients of `scale` times the loss of a batch, in chunks.
///
/// # Panics
/// If the model panics on one of the devices.
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
    let embedded = run_jobs(threads, &main, jobs);

    let [images, texts] = [0, 1].map(|side| embedded.iter().map(|e| e.embeddings[side].clone()).collect());
    let leaves = [images, texts].map(|parts: Vec<_>| Tensor::cat(parts, 0).detach().require_grad());
    let rows: Vec<Range<usize>> = shares.iter().flat_map(Share::rows_of_parts).collect();
    let Loss { value, hits, embedding_grads, mut grads } = loss(task, &leaves, &batch, &rows, scale);

    let jobs = embedded.into_iter().zip(&shares).map(|(embedded, share)| {
        let embedding_grads = embedding_grads.clone().map(|grad| grad.slice_dim(0, share.rows.clone()));
        move |device: &Device| embedded.backward(embedding_grads.map(|grad| grad.to_device(&device.clone().inner())))
    });
    for share_grads in run_jobs(threads, &main, jobs) {
        grads.accumulate(task, share_grads.to_device(&main, task));
    }
    StepGradients { grads: grads.grads(), output: task.report(value, hits / b as f64) }
}

/// Runs the n-th job on the n-th device, or the only job on `main`, and returns the results.
fn run_jobs<T, F>(threads: Option<&DeviceThreads>, main: &Device, jobs: impl Iterator<Item = F>) -> Vec<T>
where
    T: Send + 'static,
    F: FnOnce(&Device) -> T + Send + 'static,
{
    match threads {
        None => jobs.map(|job| job(main)).collect(),
        Some(threads) => threads.run(jobs).unwrap_or_else(|error| panic!("{error}")),
    }
}

/// The pairs of a batch on one device.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Share {
    /// Range of the pairs in the batch.
    rows: Range<usize>,
    /// The chunks of the share.
    parts: Vec<Part>,
}

/// The pairs of one forward pass.
#[derive(Debug, Clone, PartialEq)]
struct Part {
    /// Index among the chunks of the batch.
    number: usize,
    /// Range of the pairs in the share.
    rows: Range<usize>,
}

impl Share {
    /// Returns the number of pairs.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Returns the range of each chunk in the batch.
    pub(super) fn rows_of_parts(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.parts.iter().map(|part| self.rows.start + part.rows.start..self.rows.start + part.rows.end)
    }
}

/// Divides a batch of `b` pairs into nearly equal shares for `devices`, in chunks. Empty shares are left out.
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

/// A share between its two forward passes.
struct Embedded {
    /// The task on the device of the share.
    task: ClipTask,
    /// The pairs of the share on its device.
    batch: ClipBatch,
    parts: Vec<Part>,
    /// Embeddings of images and captions, `[b, D]` in f32 on the first device, without a graph.
    embeddings: [Tensor<2>; 2],
    /// The embeddings with their graph, for a share of a single chunk, which needs no second pass.
    tracked: Option<[Tensor<2>; 2]>,
}

impl Embedded {
    /// The first pass.
    fn new(task: ClipTask, batch: ClipBatch, parts: Vec<Part>, main: &Device) -> Self {
        let plain = |embed: Tensor<2>| embed.cast(FloatDType::F32).detach();
        let (embeddings, tracked) = if let [part] = parts.as_slice() {
            let tracked = embed(&task, &batch, part);
            (tracked.clone().map(plain), Some(tracked))
        } else {
            // With autodiff, so that dropout is active, but without tracked parameters, so that no activations are saved.
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
        Self { embeddings: embeddings.map(|embed| embed.to_device(main)), task, batch, parts, tracked }
    }

    /// Runs the second pass: propagates the gradients of the embeddings, `[b, D]`, to the weights.
    fn backward(mut self, embedding_grads: [Tensor<2>; 2]) -> GradientsParams {
        let mut grads = GradientsAccumulator::new();
        for part in &self.parts {
            let [image, text] = self.tracked.take().unwrap_or_else(|| embed(&self.task, &self.batch, part));
            let [image_grad, text_grad] = embedding_grads.clone().map(|grad| grad.slice_dim(0, part.rows.clone()));
            let dot = |embed: Tensor<2>, grad: Tensor<2>| (embed.cast(FloatDType::F32) * grad).sum();
            let total = match self.task.options().image_tower {
                ImageTower::Trained => dot(image, image_grad) + dot(text, text_grad),
                ImageTower::Locked => dot(text, text_grad),
            };
            grads.accumulate(&self.task, GradientsParams::from_grads(total.backward(), &self.task));
        }
        grads.grads()
    }
}

/// Embeds the images and captions of a chunk. Dropout uses the generator of the device, so both passes over a chunk start
/// from the same seed.
fn embed(task: &ClipTask, share: &ClipBatch, part: &Part) -> [Tensor<2>; 2] {
    let batch = share.part(&part.rows);
    let forward = || [task.embed_images(&batch), task.embed_captions(&batch)];
    if !task.has_dropout() {
        return forward();
    }
    let _guard = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    batch.pixels.device().seed(mix_seed(batch.seed, DROPOUT, part.number as u64));
    forward()
}

/// The loss of the embeddings and its gradients.
struct Loss {
    /// `[1]`, not scaled.
    value: Tensor<1>,
    /// Number of images with a nearest caption of the same class, `[1]`.
    hits: Tensor<1>,
    /// Gradients of the image and the text embeddings, `[B, D]`, without autodiff.
    embedding_grads: [Tensor<2>; 2],
    /// Gradients of the parameters of the loss.
    grads: GradientsAccumulator<ClipTask>,
}

/// Computes the loss chunk by chunk, so that only the logits of one chunk are in memory, and the gradients of `scale` times
/// the loss.
fn loss(task: &ClipTask, leaves: &[Tensor<2>; 2], batch: &ClipBatch, parts: &[Range<usize>], scale: f64) -> Loss {
    let device = leaves[0].device().inner();
    let zero = || Tensor::<1>::zeros([1], &device);
    let mut sum = Loss {
        value: zero(),
        hits: zero(),
        embedding_grads: [0, 1].map(|side: usize| leaves[side].clone().without_autodiff().zeros_like()),
        grads: GradientsAccumulator::new(),
    };
    for rows in parts {
        let [image, text] = leaves.clone();
        let share = task.objective().share(image, text, Some(&batch.targets), rows.clone());
        sum.value = sum.value + share.loss.clone().without_autodiff();
        sum.hits = sum.hits + matched(share.logits, &batch.targets, rows.clone());
        let mut grads = (share.loss * scale).backward();
        for (total, leaf) in sum.embedding_grads.iter_mut().zip(leaves) {
            if let Some(grad) = leaf.grad_remove(&mut grads) {
                *total = total.clone() + grad;
            }
        }
        sum.grads.accumulate(task, GradientsParams::from_grads(grads, task));
    }
    sum
}

impl ClipBatch {
    /// Returns the pairs `rows`, with captions padded as in the batch.
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
