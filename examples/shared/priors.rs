//! Training of either prior, from CLIP or from embedded pairs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use burn::prelude::Tensor;
use clap::ValueEnum;
use dalle2::base::diffusion::SeededNoise;
use dalle2::base::metrics::EmbeddingMetrics;
use dalle2::base::{Captions, Prior, PriorOptions, TextCondition};
use dalle2::prior::train::{AutoregressiveBatch, AutoregressiveTask, CAPTION_DROPOUT, PriorBatch, PriorTask};
use dalle2::prior::{EmbeddingQuantizer, TrainingCost};
use dalle2::{Device, FloatType, Result, install_part};
use dalle2_train::data::EmbeddingSet;
use dalle2_train::{BatchSource, Hooks, ShuffledIndices, mix_seed};
use serde::Serialize;

use super::data::{Data, Frozen};
use super::hooks::go_on;

/// The two kinds of prior.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Denoises the embedding.
    Diffusion,
    /// Draws the embedding's principal components one by one.
    Autoregressive,
}

impl Kind {
    /// Name as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Diffusion => "diffusion",
            Self::Autoregressive => "autoregressive",
        }
    }
}

/// Where the pairs of a training run come from; clones share it.
#[derive(Clone)]
#[expect(clippy::large_enum_variant, reason = "one value lives per run")]
pub enum Pairs {
    /// Embedded before.
    Set {
        /// The set.
        set: Arc<EmbeddingSet>,
        /// The order in which training visits it.
        order: Arc<ShuffledIndices>,
    },
    /// Embedded by CLIP as they are needed.
    Clip {
        /// Captioned images.
        data: Data,
        /// The encoders.
        clip: Frozen,
        /// Seed of order and wordings.
        seed: u64,
    },
}

impl Pairs {
    /// The pairs of a set in the order that `seed` gives: the same for both kinds of prior.
    pub fn of_set(set: Arc<EmbeddingSet>, seed: u64) -> Result<Self> {
        let order = Arc::new(ShuffledIndices::new(set.len(), seed)?);
        Ok(Self::Set { set, order })
    }

    /// The same pairs in another order.
    pub fn with_seed(self, seed: u64) -> Result<Self> {
        match self {
            Self::Set { set, .. } => Self::of_set(set, seed),
            Self::Clip { data, clip, .. } => Ok(Self::Clip { data, clip, seed }),
        }
    }

    /// The captions and image embeddings of a step.
    pub fn batch(&self, step: u64, n: usize, device: &Device) -> Result<(TextCondition, Tensor<2>)> {
        match self {
            Self::Set { set, order } => {
                let pairs = set.batch(&order.batch(step, n), device);
                Ok((pairs.text, pairs.image))
            }
            Self::Clip { data, clip, seed } => {
                let encoded = clip.encode(&data.batch(*seed, step, n, clip.image_size())?)?.to_device(device);
                Ok((encoded.text, encoded.embedding))
            }
        }
    }

    /// The encoded empty caption.
    pub fn null(&self, device: &Device) -> TextCondition {
        match self {
            Self::Set { set, .. } => set.null(device),
            Self::Clip { clip, .. } => clip.null().to_device(device),
        }
    }

    /// Image and caption embeddings from which a quantizer is fitted: all of a set, or `most` that CLIP embeds.
    pub fn sample(&self, most: usize, device: &Device) -> Result<(Tensor<2>, Tensor<2>)> {
        const BATCH: usize = 64;
        if let Self::Set { set, .. } = self {
            return Ok(set.embeddings(device));
        }
        let (mut images, mut captions) = (Vec::new(), Vec::new());
        for step in 0..most.div_ceil(BATCH) as u64 {
            let (text, image) = self.batch(step, BATCH, device)?;
            images.push(image);
            captions.push(text.pooled);
        }
        Ok((Tensor::cat(images, 0), Tensor::cat(captions, 0)))
    }
}

/// Batches for the diffusion prior.
pub struct DiffusionSource {
    /// The pairs.
    pub pairs: Pairs,
    /// Pairs in a batch.
    pub batch_size: usize,
    /// Timesteps of the schedule.
    pub train_steps: usize,
    /// Seed of timesteps, noise and dropped captions.
    pub seed: u64,
}

impl BatchSource for DiffusionSource {
    type Batch = PriorBatch;

    fn batch(&self, step: u64, device: &Device) -> Result<PriorBatch> {
        let (text, embedding) = self.pairs.batch(step, self.batch_size, device)?;
        let (seed, null) = (mix_seed(self.seed, 1, step), self.pairs.null(device));
        Ok(PriorBatch::draw(seed, &text, &null, embedding, CAPTION_DROPOUT, self.train_steps))
    }
}

/// Batches for the autoregressive prior.
pub struct AutoregressiveSource {
    /// The pairs.
    pub pairs: Pairs,
    /// Pairs in a batch.
    pub batch_size: usize,
    /// What turns their embeddings into tokens.
    pub quantizer: EmbeddingQuantizer,
    /// Seed of dropped captions.
    pub seed: u64,
}

impl BatchSource for AutoregressiveSource {
    type Batch = AutoregressiveBatch;

    fn batch(&self, step: u64, device: &Device) -> Result<AutoregressiveBatch> {
        let (text, embedding) = self.pairs.batch(step, self.batch_size, device)?;
        let (seed, null) = (mix_seed(self.seed, 1, step), self.pairs.null(device));
        AutoregressiveBatch::draw(seed, &text, &null, embedding, CAPTION_DROPOUT, &self.quantizer)
    }
}

/// A training task that is a prior so far.
pub trait AsPrior {
    /// The prior.
    fn as_prior(&self) -> Result<Box<dyn Prior>>;
}

impl AsPrior for PriorTask {
    fn as_prior(&self) -> Result<Box<dyn Prior>> {
        Ok(Box::new(self.prior()?))
    }
}

impl AsPrior for AutoregressiveTask {
    fn as_prior(&self) -> Result<Box<dyn Prior>> {
        Ok(Box::new(self.prior()?))
    }
}

/// Captions with the true embeddings of their images.
#[derive(Debug, Clone)]
pub struct Truth {
    /// The captions.
    pub text: TextCondition,
    /// The encoded empty caption.
    pub null: TextCondition,
    /// The image embeddings `[N, D]`.
    pub image: Tensor<2>,
}

impl Truth {
    /// All pairs of a set.
    pub fn of_set(set: &EmbeddingSet, indices: &[usize], device: &Device) -> Self {
        let pairs = set.batch(indices, device);
        Self { text: pairs.text, null: set.null(device), image: pairs.image }
    }

    /// An embedding drawn for every caption; caption i has the seed `seed + i`.
    pub fn draw(&self, prior: &dyn Prior, options: &PriorOptions, seed: u64) -> Result<Tensor<2>> {
        let mut noise = SeededNoise::consecutive(seed, self.text.batch_size(), 1);
        prior.sample(Captions { text: &self.text, null: &self.null }, options, &mut noise, &mut go_on)
    }

    /// What can be said of predicted embeddings.
    pub fn compare(&self, predicted: Tensor<2>) -> Result<EmbeddingMetrics> {
        EmbeddingMetrics::new(predicted, self.image.clone(), self.text.pooled.clone())
    }
}

/// Compares drawn embeddings with the true ones now and then, says what training has cost, and exports the prior.
pub struct PriorHooks {
    /// What is drawn and compared.
    pub truth: Truth,
    /// How embeddings are drawn.
    pub options: PriorOptions,
    /// What a pair costs.
    pub cost: TrainingCost,
    /// Pairs in a step.
    pub batch_size: usize,
    /// The pipeline directory that the prior becomes a part of.
    pub export: Option<PathBuf>,
    /// Seconds spent here so far, which are no training.
    pub seconds: f64,
}

impl<T: AsPrior> Hooks<T> for PriorHooks {
    fn validate(&mut self, model: &T, step: u64) -> Result<Vec<(String, f64)>> {
        let start = Instant::now();
        let drawn = self.truth.draw(&*model.as_prior()?, &self.options, 0)?;
        let metrics = self.truth.compare(drawn)?.figures().into_iter().map(|(name, value)| (name.to_owned(), value));
        let mut figures: Vec<(String, f64)> = metrics.collect();
        figures.extend(self.cost.figures(step * self.batch_size as u64));
        self.seconds += start.elapsed().as_secs_f64();
        figures.push(("validation_seconds".into(), self.seconds));
        Ok(figures)
    }

    fn export(&mut self, model: &T, _dir: &Path) -> Result<()> {
        match &self.export {
            Some(dir) => install_part(dir, "prior", &*model.as_prior()?, FloatType::F16),
            None => Ok(()),
        }
    }
}
