//! Validation and export of both priors.

use std::time::Instant;

use burn::prelude::*;
use dalle2_core::diffusion::SeededNoise;
use dalle2_core::metrics::EmbeddingMetrics;
use dalle2_core::store::PipelineDir;
use dalle2_core::{Captions, FloatType, Prior, PriorOptions, Result, TextCondition};
use dalle2_prior::TrainingCost;
use dalle2_prior::train::{AutoregressiveTask, PriorTask};

use super::super::data::TrainItem;
use super::super::frozen::FrozenClip;
use super::super::samples::continue_sampling;
use super::super::validation::label_training;
use crate::Hooks;
use crate::data::EmbeddingSet;

/// A training task that holds a prior.
pub trait AsPrior {
    /// Returns the prior with the weights trained so far.
    ///
    /// # Errors
    /// If its configuration is not valid.
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

/// Captions with the CLIP embeddings of their images, to compare sampled embeddings with.
#[derive(Debug, Clone)]
pub struct ReferencePairs {
    /// The captions.
    pub text: TextCondition,
    /// The encoded empty caption.
    pub null: TextCondition,
    /// The image embeddings `[N, D]`.
    pub image: Tensor<2>,
}

impl ReferencePairs {
    /// Takes pairs from a set.
    pub fn of_set(set: &EmbeddingSet, indices: &[usize], device: &Device) -> Self {
        let pairs = set.batch(indices, device);
        Self { text: pairs.text, null: set.null(device), image: pairs.image }
    }

    /// Embeds items.
    ///
    /// # Errors
    /// If CLIP cannot encode them.
    pub fn of_items(items: &[TrainItem], clip: &FrozenClip) -> Result<Self> {
        let encoded = clip.encode(items)?;
        Ok(Self { text: encoded.text, null: clip.null().clone(), image: encoded.embedding })
    }

    /// Samples an embedding for each caption; caption i has the seed `seed + i`.
    ///
    /// # Errors
    /// If the prior fails.
    pub fn sample(&self, prior: &dyn Prior, options: &PriorOptions, seed: u64) -> Result<Tensor<2>> {
        let mut noise = SeededNoise::consecutive(seed, self.text.batch_size(), 1);
        prior.sample(Captions { text: &self.text, null: &self.null }, options, &mut noise, &mut continue_sampling)
    }

    /// Measures predicted embeddings against the references.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn compare(&self, predicted: Tensor<2>) -> Result<EmbeddingMetrics> {
        EmbeddingMetrics::new(predicted, self.image.clone(), self.text.pooled.clone())
    }
}

/// Compares sampled embeddings with the references, reports the cost of training so far, and installs the prior.
#[derive(Debug)]
pub struct PriorHooks {
    reference: ReferencePairs,
    options: PriorOptions,
    cost: TrainingCost,
    batch_size: usize,
    exports: bool,
    on_training_data: bool,
    /// Seconds of validation so far, which are not training.
    seconds: f64,
}

impl PriorHooks {
    /// Creates the hooks of a run with `batch_size` pairs per step and `cost` per pair.
    pub fn new(reference: ReferencePairs, options: PriorOptions, cost: TrainingCost, batch_size: usize) -> Self {
        Self { reference, options, cost, batch_size, exports: true, on_training_data: false, seconds: 0.0 }
    }

    /// Labels the metrics as computed on training data.
    pub fn on_training_data(self) -> Self {
        Self { on_training_data: true, ..self }
    }

    /// Leaves the pipeline directory alone.
    pub fn without_export(self) -> Self {
        Self { exports: false, ..self }
    }
}

impl<T: AsPrior> Hooks<T> for PriorHooks {
    fn validate(&mut self, model: &T, step: u64) -> Result<Vec<(String, f64)>> {
        let start = Instant::now();
        let samples = self.reference.sample(&*model.as_prior()?, &self.options, 0)?;
        let compared = self.reference.compare(samples)?.figures();
        let compared: Vec<(String, f64)> = compared.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let mut metrics = if self.on_training_data { label_training(compared) } else { compared };
        metrics.extend(self.cost.figures(step * self.batch_size as u64));
        self.seconds += start.elapsed().as_secs_f64();
        metrics.push(("validation_seconds".into(), self.seconds));
        Ok(metrics)
    }

    fn export(&mut self, model: &T, pipeline: &mut PipelineDir) -> Result<()> {
        if self.exports { pipeline.install("prior", &*model.as_prior()?, FloatType::F16) } else { Ok(()) }
    }
}
