//! Batches for both priors.

use std::sync::Arc;

use burn::prelude::*;
use dalle2_core::{Result, TextCondition};
use dalle2_prior::train::{AutoregressiveBatch, CAPTION_DROPOUT, PriorBatch};
use dalle2_prior::{DiffusionPriorConfig, EmbeddingQuantizer};

use super::super::data::TrainData;
use super::super::frozen::FrozenClip;
use crate::data::{EmbeddingSet, Order};
use crate::{BatchSource, mix_seed};

/// Pairs of captions and image embeddings in the order of training. Clones share them.
#[derive(Clone)]
pub struct PairSource {
    origin: Origin,
    seed: u64,
}

#[derive(Clone)]
enum Origin {
    /// Embedded before.
    Set { set: Arc<EmbeddingSet>, rows: Arc<[usize]>, order: Arc<Order> },
    /// Embedded by CLIP when a batch needs them.
    Clip { data: Arc<dyn TrainData>, clip: Box<FrozenClip> },
}

impl PairSource {
    /// Creates a source of embedded pairs in the order of `seed`.
    ///
    /// # Errors
    /// If the set is empty.
    pub fn of_set(set: Arc<EmbeddingSet>, seed: u64) -> Result<Self> {
        let rows = (0..set.len()).collect();
        Self::of_rows(set, rows, seed)
    }

    /// Creates a source of some pairs of a set, in the order of `seed`.
    ///
    /// # Errors
    /// If there are no rows.
    ///
    /// # Panics
    /// If a row is outside the set.
    pub fn of_rows(set: Arc<EmbeddingSet>, rows: Arc<[usize]>, seed: u64) -> Result<Self> {
        assert!(rows.iter().all(|row| *row < set.len()), "rows of a set of {}", set.len());
        let order = Arc::new(Order::new(seed, rows.len())?);
        Ok(Self { origin: Origin::Set { set, rows, order }, seed })
    }

    /// Creates a source that embeds the items of `data` when a batch needs them.
    pub fn of_data(data: Arc<dyn TrainData>, clip: FrozenClip, seed: u64) -> Self {
        Self { origin: Origin::Clip { data, clip: Box::new(clip) }, seed }
    }

    /// Returns the same pairs in the order of another seed.
    ///
    /// # Errors
    /// If the set is empty.
    pub fn with_seed(self, seed: u64) -> Result<Self> {
        match self.origin {
            Origin::Set { set, rows, .. } => Self::of_rows(set, rows, seed),
            origin @ Origin::Clip { .. } => Ok(Self { origin, seed }),
        }
    }

    /// Returns the captions and image embeddings of a step.
    ///
    /// # Errors
    /// If an item cannot be read or embedded.
    pub fn batch(&self, step: u64, count: usize, device: &Device) -> Result<(TextCondition, Tensor<2>)> {
        match &self.origin {
            Origin::Set { set, rows, order } => {
                let batch: Vec<usize> = order.batch(step, count).into_iter().map(|place| rows[place]).collect();
                let pairs = set.batch(&batch, device);
                Ok((pairs.text, pairs.image))
            }
            Origin::Clip { data, clip } => {
                let items = data.batch(self.seed, step, count, clip.image_size())?;
                let encoded = clip.encode(&items)?.to_device(device);
                Ok((encoded.text, encoded.embedding))
            }
        }
    }

    /// Returns the encoded empty caption.
    pub fn null(&self, device: &Device) -> TextCondition {
        match &self.origin {
            Origin::Set { set, .. } => set.null(device),
            Origin::Clip { clip, .. } => clip.null().to_device(device),
        }
    }

    /// Returns image and caption embeddings to fit a quantizer or a scale: all of a set, or `limit` that CLIP embeds.
    ///
    /// # Errors
    /// If an item cannot be read or embedded.
    pub fn sample(&self, limit: usize, device: &Device) -> Result<(Tensor<2>, Tensor<2>)> {
        const BATCH: usize = 64;
        if let Origin::Set { set, rows, .. } = &self.origin {
            let pairs = set.batch(rows, device);
            return Ok((pairs.image, pairs.text.pooled));
        }
        let (mut images, mut captions) = (Vec::new(), Vec::new());
        for step in 0..limit.div_ceil(BATCH) as u64 {
            let (text, image) = self.batch(step, BATCH, device)?;
            images.push(image);
            captions.push(text.pooled);
        }
        Ok((Tensor::cat(images, 0), Tensor::cat(captions, 0)))
    }
}

/// Batches for the diffusion prior.
///
/// The seed decides order, timesteps, noise and which captions are dropped.
#[derive(Clone)]
pub struct PriorSource {
    pairs: PairSource,
    batch_size: usize,
    train_steps: usize,
}

impl PriorSource {
    /// Creates batches of embedded pairs.
    ///
    /// # Errors
    /// If the set and the configuration have different widths.
    pub fn new(
        set: impl Into<Arc<EmbeddingSet>>,
        config: &DiffusionPriorConfig,
        batch_size: usize,
        seed: u64,
    ) -> Result<Self> {
        let set = set.into();
        set.check_sizes(config.embed_dim, config.token_width, config.context_length)?;
        Ok(Self::of_pairs(PairSource::of_set(set, seed)?, config, batch_size))
    }

    /// Creates batches of any pairs.
    pub fn of_pairs(pairs: PairSource, config: &DiffusionPriorConfig, batch_size: usize) -> Self {
        Self { pairs, batch_size, train_steps: config.diffusion.train_steps }
    }
}

impl BatchSource for PriorSource {
    type Batch = PriorBatch;

    fn batch(&self, step: u64, device: &Device) -> Result<PriorBatch> {
        let (text, embedding) = self.pairs.batch(step, self.batch_size, device)?;
        let (seed, null) = (mix_seed(self.pairs.seed, 1, step), self.pairs.null(device));
        Ok(PriorBatch::draw(seed, &text, &null, embedding, CAPTION_DROPOUT, self.train_steps))
    }
}

/// Batches for the autoregressive prior.
#[derive(Clone)]
pub struct AutoregressiveSource {
    pairs: PairSource,
    batch_size: usize,
    quantizer: EmbeddingQuantizer,
}

impl AutoregressiveSource {
    /// Creates batches of pairs whose embeddings `quantizer` turns into tokens.
    pub fn new(pairs: PairSource, quantizer: EmbeddingQuantizer, batch_size: usize) -> Self {
        Self { pairs, batch_size, quantizer }
    }
}

impl BatchSource for AutoregressiveSource {
    type Batch = AutoregressiveBatch;

    fn batch(&self, step: u64, device: &Device) -> Result<AutoregressiveBatch> {
        let (text, embedding) = self.pairs.batch(step, self.batch_size, device)?;
        let (seed, null) = (mix_seed(self.pairs.seed, 1, step), self.pairs.null(device));
        AutoregressiveBatch::draw(seed, &text, &null, embedding, CAPTION_DROPOUT, &self.quantizer)
    }
}
