//! How good the embeddings are that a prior predicts.

use std::collections::BTreeMap;

use burn::prelude::*;
use serde::{Deserialize, Serialize};

use super::{cosine_similarity, embeddings::finite, frechet_distance, retrieval_at_k, similarity_matrix};
use crate::{Error, Result, nn};

/// Mean squared difference of two sets of embeddings, over rows and components.
///
/// # Shapes
/// - `a`, `b`: `[N, D]`
///
/// # Errors
/// [`Error::Mismatch`] if the shapes differ, [`Error::Input`] for no row or a value that is not finite.
pub fn embedding_mse(a: Tensor<2>, b: Tensor<2>) -> Result<f64> {
    if a.dims() != b.dims() {
        return Err(Error::Mismatch(format!(
            "embeddings of shape {:?} and {:?} cannot be compared",
            a.dims(),
            b.dims()
        )));
    }
    mean(finite((a - b).square().mean_dim(1).squeeze_dim::<1>(1), "a squared difference")?)
}

/// The share of predicted embeddings for which the true one is among the `k` closest of all N true ones.
///
/// # Shapes
/// - `predicted`, `truth`: `[N, D]`
///
/// # Errors
/// [`Error::Mismatch`] if the widths differ, [`Error::Input`] for no row, other numbers of rows or a value that is not
/// finite.
pub fn recall_at_k(predicted: Tensor<2>, truth: Tensor<2>, k: usize) -> Result<f64> {
    let targets: Vec<usize> = (0..truth.dims()[0]).collect();
    retrieval_at_k(similarity_matrix(predicted, truth)?, &targets, k)
}

/// What can be said of predicted image embeddings, given the true ones and the captions'.
///
/// Only directions count: everything is computed of embeddings brought to unit length. Figures "shuffled" compare with
/// the next item's by half the set, which is what predictions reach that ignore their caption.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EmbeddingMetrics {
    /// Mean cosine of predicted and true image embedding.
    pub cosine: f64,
    /// The same with another caption's prediction.
    pub cosine_shuffled: f64,
    /// Mean cosine of predicted image embedding and the caption's embedding.
    pub text_cosine: f64,
    /// The same with another caption's prediction.
    pub text_cosine_shuffled: f64,
    /// Mean cosine of the true image embedding and the caption's: what `text_cosine` should come to.
    pub text_cosine_true: f64,
    /// Mean squared error of the predicted embedding, per component.
    pub mse: f64,
    /// Fréchet distance between the sets of predicted and true embeddings.
    pub frechet: f64,
    /// Share of predictions whose nearest true embedding is their own.
    pub recall_at_1: f64,
    /// Share of predictions whose own true embedding is among the five nearest.
    pub recall_at_5: f64,
}

impl EmbeddingMetrics {
    /// Compares predictions with the truth.
    ///
    /// # Shapes
    /// `[N, D]` each, with N at least 2
    ///
    /// # Errors
    /// [`Error::Mismatch`] if the shapes differ, [`Error::Input`] for fewer than two rows or a value that is not finite.
    pub fn new(predicted: Tensor<2>, truth: Tensor<2>, text: Tensor<2>) -> Result<Self> {
        let n = truth.dims()[0];
        if n < 2 {
            return Err(Error::Input(format!("comparing embeddings needs at least two, got {n}")));
        }
        let [predicted, truth, text] = [predicted, truth, text].map(nn::l2_normalize);
        let cosine = |a: &Tensor<2>, b: &Tensor<2>| {
            mean(finite(cosine_similarity(a.clone(), b.clone())?, "a cosine of embeddings")?)
        };
        let other =
            Tensor::cat(vec![predicted.clone().narrow(0, n / 2, n - n / 2), predicted.clone().narrow(0, 0, n / 2)], 0);
        Ok(Self {
            cosine: cosine(&predicted, &truth)?,
            cosine_shuffled: cosine(&other, &truth)?,
            text_cosine: cosine(&predicted, &text)?,
            text_cosine_shuffled: cosine(&other, &text)?,
            text_cosine_true: cosine(&truth, &text)?,
            mse: embedding_mse(predicted.clone(), truth.clone())?,
            frechet: frechet_distance(predicted.clone(), truth.clone())?,
            recall_at_1: recall_at_k(predicted.clone(), truth.clone(), 1)?,
            recall_at_5: recall_at_k(predicted, truth, 5)?,
        })
    }

    /// The figures by name, for a log.
    pub fn figures(&self) -> BTreeMap<&'static str, f64> {
        BTreeMap::from([
            ("cosine", self.cosine),
            ("cosine_shuffled", self.cosine_shuffled),
            ("text_cosine", self.text_cosine),
            ("text_cosine_shuffled", self.text_cosine_shuffled),
            ("text_cosine_true", self.text_cosine_true),
            ("mse", self.mse),
            ("frechet", self.frechet),
            ("recall_at_1", self.recall_at_1),
            ("recall_at_5", self.recall_at_5),
        ])
    }
}

fn mean(values: Vec<f32>) -> Result<f64> {
    if values.is_empty() {
        return Err(Error::Input("a mean over embeddings needs at least one".into()));
    }
    Ok(values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows<const N: usize, const D: usize>(values: [[f32; D]; N]) -> Tensor<2> {
        Tensor::from_floats(values, &Device::flex())
    }

    #[test]
    fn figures_of_four_embeddings_are_those_counted_by_hand() {
        let truth = rows([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]);
        // Two right, one at 45° between its own and another, one opposite to its own; lengths do not count.
        let predicted = rows([[3.0, 0.0], [0.0, 0.5], [-1.0, 1.0], [0.0, 7.0]]);
        let text = rows([[1.0, 1.0], [1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]]);
        let found = EmbeddingMetrics::new(predicted, truth, text).unwrap();
        let half = 0.5f64.sqrt();
        let expect = |name: &str, found: f64, expected: f64| {
            assert!((found - expected).abs() < 1e-6, "{name}: {found}, expected {expected}");
        };
        expect("cosine", found.cosine, (1.0 + 1.0 + half - 1.0) / 4.0);
        // Moved on by two: (−1, 1), (0, 1), (1, 0), (0, 1) against the truth.
        expect("cosine_shuffled", found.cosine_shuffled, (-half + 1.0 - 1.0 - 1.0) / 4.0);
        expect("text_cosine", found.text_cosine, (half + half + 0.0 - half) / 4.0);
        expect("text_cosine_true", found.text_cosine_true, half);
        expect("mse", found.mse, (0.0 + 0.0 + (2.0 - 2.0 * half) + 4.0) / 8.0);
        expect("recall_at_1", found.recall_at_1, 0.5); // a tie counts against the third
        expect("recall_at_5", found.recall_at_5, 1.0);
        assert!(found.frechet > 0.0);
        assert_eq!(found.figures().len(), 9);
    }

    #[test]
    fn the_truth_has_perfect_figures() {
        let truth = rows([[1.0, 0.2], [0.1, 1.0], [-1.0, 0.3]]);
        let found = EmbeddingMetrics::new(truth.clone() * 4.0, truth.clone(), truth).unwrap();
        assert!((found.cosine - 1.0).abs() < 1e-6 && found.mse < 1e-12 && found.frechet < 1e-7, "{found:?}");
        assert_eq!(found.recall_at_1, 1.0);
    }

    #[test]
    fn sets_that_cannot_be_compared_are_refused() {
        let two = rows([[1.0, 0.0], [0.0, 1.0]]);
        let message = |p, t, c| EmbeddingMetrics::new(p, t, c).unwrap_err().to_string();
        assert!(message(rows([[1.0, 0.0]]), rows([[1.0, 0.0]]), rows([[1.0, 0.0]])).contains("at least two"));
        assert!(message(two.clone(), rows([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), two.clone()).contains("[2, 3]"));
        assert!(message(two.clone() * f32::NAN, two.clone(), two.clone()).contains("NaN"));
        assert!(embedding_mse(two.clone(), rows([[0.0, 0.0]])).is_err());
        assert!(recall_at_k(two, rows([[1.0, 0.0]]), 1).is_err());
    }
}
