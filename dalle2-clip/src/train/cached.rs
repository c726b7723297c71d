//! Gradient caching (Gao et al. 2021, arXiv 2101.06983): the gradients of a batch that does not fit in memory at once.

use std::ops::Range;

use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::prelude::*;
use burn::tensor::FloatDType;
use burn::train::TrainOutput;
use dalle2_core::train::{StepOutput, mix_seed};

use super::task::{ImageTower, matched};
use super::{ClipBatch, ClipTask};
use crate::TokenBatch;

/// Stream of dropout, see [`mix_seed`].
pub(super) const DROPOUT: u64 = 0x6361_6368_6564;

/// A training step in parts of `chunk` pairs.
pub(super) fn step(task: &ClipTask, batch: ClipBatch, chunk: usize) -> TrainOutput<StepOutput> {
    let b = batch.len();
    let device = batch.pixels.device();
    let parts: Vec<Range<usize>> = (0..b).step_by(chunk).map(|start| start..(start + chunk).min(b)).collect();
    // Dropout draws from the device, so both passes over a part begin with the same seed.
    let seed = |part: usize| device.seed(mix_seed(batch.seed, DROPOUT, part as u64));

    // With autodiff, so that dropout acts, and without parameters to follow, so that nothing is kept.
    let untracked = task.clone().no_grad();
    let embedded = parts.iter().enumerate().map(|(i, rows)| {
        seed(i);
        let part = batch.part(rows);
        (untracked.embed_images(&part), untracked.embed_captions(&part))
    });
    let (images, texts): (Vec<_>, Vec<_>) = embedded.unzip();
    let leaves = [images, texts].map(|parts| Tensor::cat(parts, 0).cast(FloatDType::F32).detach().require_grad());
    let Loss { value, hits, of_embeddings: [of_images, of_texts], mut grads } = loss(task, &leaves, &batch, &parts);

    for (i, rows) in parts.iter().enumerate() {
        seed(i);
        let part = batch.part(rows);
        let along = |embed: Tensor<2>, of: &Tensor<2>| {
            (embed.cast(FloatDType::F32) * of.clone().slice_dim(0, rows.clone())).sum()
        };
        let total = match task.options().image_tower {
            ImageTower::Trained => {
                let of_image = along(task.embed_images(&part), &of_images);
                of_image + along(task.embed_captions(&part), &of_texts)
            }
            ImageTower::Locked => along(task.embed_captions(&part), &of_texts),
        };
        grads.accumulate(task, GradientsParams::from_grads(total.backward(), task));
    }
    TrainOutput { grads: grads.grads(), item: task.report(value, hits / b as f64) }
}

/// The loss of the embeddings, and where it leads.
struct Loss {
    /// `[1]`
    value: Tensor<1>,
    /// Number of images whose nearest caption is of their class, `[1]`.
    hits: Tensor<1>,
    /// Gradients of the image and the text embeddings, `[B, D]`, without autodiff.
    of_embeddings: [Tensor<2>; 2],
    /// Gradients of the loss's own parameters.
    grads: GradientsAccumulator<ClipTask>,
}

/// In the same parts, so that the logits in memory are those of one part against all.
fn loss(task: &ClipTask, leaves: &[Tensor<2>; 2], batch: &ClipBatch, parts: &[Range<usize>]) -> Loss {
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
        let mut grads = share.loss.backward();
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
}
