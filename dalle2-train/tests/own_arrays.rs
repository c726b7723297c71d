//! A prior trained from a person's own arrays.
#![allow(clippy::unwrap_used)]

use burn::prelude::*;
use dalle2_core::{TextCondition, TokenMask};
use dalle2_prior::{DiffusionPriorConfig, train::PriorTask};
use dalle2_train::data::{EmbeddedPairs, EmbeddingSet};
use dalle2_train::recipes::prior::PriorSource;
use dalle2_train::{DisplayMode, RunOptions, TrainConfig, Trainer};

const N: usize = 32;
const D: usize = 16;
const S: usize = 4;
const W: usize = 8;

fn array<const R: usize>(shape: [usize; R], device: &Device) -> Tensor<R> {
    let values: Vec<f32> = (0..shape.iter().product()).map(|i: usize| (i as f32 * 0.37).sin()).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

#[test]
fn a_prior_trains_from_arrays_in_thirty_lines() -> dalle2_core::Result<()> {
    let device = Device::flex();
    let text = TextCondition {
        pooled: array([N, D], &device),
        tokens: array([N, S, W], &device),
        mask: TokenMask::from_lengths(&[S; N], S, &device),
    };
    let captions = (0..N).map(|i| format!("caption {i}")).collect();
    let null = text.select(&[0]);
    let pairs = EmbeddedPairs { captions, text, image: array([N, D], &device) };
    let set = EmbeddingSet::from_pairs(&pairs, &null)?;

    let config = DiffusionPriorConfig { d_model: 32, n_heads: 4, n_layers: 1, ..DiffusionPriorConfig::tiny(D, W, S) };
    let source = PriorSource::new(set, &config, 8, 0)?;
    let task = PriorTask::new(&config, &device.clone().autodiff())?;
    let train = TrainConfig { steps: 4, batch_size: 8, learning_rate: 1e-3, ..TrainConfig::default() };
    let run = tempfile::tempdir().unwrap();
    let options = RunOptions { display: DisplayMode::Quiet, ..RunOptions::default() };
    let trained = Trainer::new(train, run.path()).options(options).run(task, &source, &mut ())?;
    let prior = trained.best().prior()?;
    assert_eq!(prior.config().embed_dim, D);
    Ok(())
}

#[test]
fn arrays_that_are_not_pairs_are_refused() {
    let device = Device::flex();
    let text = |count: usize| TextCondition {
        pooled: array([count, D], &device),
        tokens: array([count, S, W], &device),
        mask: TokenMask::from_lengths(&vec![S; count], S, &device),
    };
    let pairs = |captions: usize| EmbeddedPairs {
        captions: vec![String::new(); captions],
        text: text(N),
        image: array([N, D], &device),
    };
    let message =
        |pairs: &EmbeddedPairs, null: &TextCondition| EmbeddingSet::from_pairs(pairs, null).unwrap_err().to_string();
    assert!(message(&pairs(3), &text(1)).contains("3 captions"));
    assert!(message(&pairs(N), &text(2)).contains("2 empty captions"));
    let mut broken = pairs(N);
    broken.image = broken.image * f32::NAN;
    assert!(message(&broken, &text(1)).contains("not finite"));
}
