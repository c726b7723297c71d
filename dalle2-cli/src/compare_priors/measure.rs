//! Figures of predicted embeddings.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Result;
use burn::prelude::Tensor;
use dalle2::base::diffusion::SeededNoise;
use dalle2::base::metrics::{EmbeddingMetrics, Estimate, diversity};
use dalle2::base::{Captions, Prior, PriorOptions, TextCondition};
use serde::Serialize;

use dalle2_train::recipes::prior::ReferencePairs;
use dalle2_train::recipes::{Pair, continue_sampling};

/// Figures by name, one value for each seed.
#[derive(Debug, Clone, Default)]
pub struct Collected(BTreeMap<String, Vec<f64>>);

/// Figures by name, with intervals over seeds.
pub type Estimates = BTreeMap<String, Estimate>;

impl Collected {
    /// Adds the metrics of a seed.
    pub fn push(&mut self, metrics: impl IntoIterator<Item = (String, f64)>) {
        for (name, value) in metrics {
            self.0.entry(name).or_default().push(value);
        }
    }

    /// Means and intervals.
    pub fn estimates(&self) -> Result<Estimates> {
        self.0.iter().map(|(name, values)| Ok((name.clone(), Estimate::of(values)?))).collect()
    }
}

/// The metrics of a comparison by name.
pub fn named(metrics: &EmbeddingMetrics) -> Vec<(String, f64)> {
    metrics.figures().into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Metrics of predictions for all pairs, with separate cosines for held-out wordings and compositions.
pub fn measure(truth: &ReferencePairs, pairs: &[Pair], predicted: &Tensor<2>) -> Result<Vec<(String, f64)>> {
    let mut results = named(&truth.compare(predicted.clone())?);
    for (name, composition) in [("cosine_wordings", false), ("cosine_compositions", true)] {
        let rows: Vec<usize> = (0..pairs.len()).filter(|i| pairs[*i].composition == composition).collect();
        if rows.len() > 1 {
            let pick = |x: &Tensor<2>| select(x, &rows);
            let metrics = EmbeddingMetrics::new(pick(predicted), pick(&truth.image), pick(&truth.text.pooled))?;
            results.push((name.to_owned(), metrics.cosine));
        }
    }
    Ok(results)
}

/// Rows of a matrix.
pub fn select(x: &Tensor<2>, rows: &[usize]) -> Tensor<2> {
    Tensor::cat(rows.iter().map(|row| x.clone().narrow(0, *row, 1)).collect(), 0)
}

/// `samples` embeddings for each caption, `[N, samples, D]`; one seed per caption.
pub fn sample(
    prior: &dyn Prior,
    truth: &ReferencePairs,
    options: &PriorOptions,
    samples: usize,
    seed: u64,
) -> Result<Tensor<3>> {
    const CAPTIONS: usize = 64;
    let n = truth.text.batch_size();
    let mut parts = Vec::new();
    for first in (0..n).step_by(CAPTIONS) {
        let count = CAPTIONS.min(n - first);
        let text = rows(&truth.text, first, count).repeat_interleave(samples);
        let mut noise = SeededNoise::consecutive(seed + first as u64, count, 1);
        let sampled =
            prior.sample(Captions { text: &text, null: &truth.null }, options, &mut noise, &mut continue_sampling)?;
        let d = sampled.dims()[1];
        parts.push(sampled.reshape([count, samples, d]));
    }
    Ok(Tensor::cat(parts, 0))
}

/// Some captions of a batch.
pub fn rows(text: &TextCondition, first: usize, count: usize) -> TextCondition {
    TextCondition {
        pooled: text.pooled.clone().narrow(0, first, count),
        tokens: text.tokens.clone().narrow(0, first, count),
        mask: dalle2::base::TokenMask::from_keep(text.mask.keep().narrow(0, first, count)),
    }
}

/// The first sample of each caption, `[N, D]`.
pub fn first(samples: &Tensor<3>) -> Tensor<2> {
    samples.clone().narrow(1, 0, 1).squeeze_dim::<2>(1)
}

/// Metrics of a guidance scale on the validation pairs.
#[derive(Debug, Clone, Serialize)]
pub struct Sweep {
    /// The scale.
    pub guidance: f64,
    /// Metrics.
    pub metrics: Estimates,
}

/// Tries guidance scales on the trained priors of one kind.
pub fn sweep(priors: &[&dyn Prior], truth: &ReferencePairs, scales: &[f64], samples: usize) -> Result<Vec<Sweep>> {
    scales
        .iter()
        .map(|&guidance| {
            let mut collected = Collected::default();
            let options = PriorOptions { guidance: Some(guidance), ..Default::default() };
            for (seed, prior) in priors.iter().enumerate() {
                let sampled = sample(*prior, truth, &options, samples, 10_000 * seed as u64)?;
                collected.push(named(&truth.compare(first(&sampled))?));
                collected.push([("diversity".to_owned(), diversity(sampled)?)]);
            }
            Ok(Sweep { guidance, metrics: collected.estimates()? })
        })
        .collect()
}

/// The scale with the highest cosine.
pub fn best(sweep: &[Sweep]) -> f64 {
    let cosine = |sweep: &&Sweep| sweep.metrics.get("cosine").map_or(f64::NEG_INFINITY, |estimate| estimate.mean);
    sweep.iter().max_by(|a, b| cosine(a).total_cmp(&cosine(b))).map_or(1.0, |sweep| sweep.guidance)
}

/// Milliseconds of one sample in a batch of four: the median of five batches after one that is not counted.
pub fn milliseconds(prior: &dyn Prior, truth: &ReferencePairs, options: &PriorOptions) -> Result<f64> {
    const BATCH: usize = 4;
    let count = BATCH.min(truth.text.batch_size());
    let text = rows(&truth.text, 0, count);
    let mut times = Vec::new();
    for run in 0..6 {
        let mut noise = SeededNoise::consecutive(run, count, 1);
        let start = Instant::now();
        drop(
            prior
                .sample(Captions { text: &text, null: &truth.null }, options, &mut noise, &mut continue_sampling)?
                .into_data(),
        );
        times.push(1000.0 * start.elapsed().as_secs_f64() / count as f64);
    }
    times.remove(0);
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}
