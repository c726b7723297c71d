//! One image of several images and captions.

use burn::prelude::*;
use dalle2_core::{Error, Result};

use super::{Controls, Source};
use crate::{GenerateRequest, Generation, Pipeline};

/// Below this share of the parts' length, their weighted sum points nowhere.
const CANCELLED: f64 = 1e-3;

impl Pipeline {
    /// Draws images of several images and captions at once.
    ///
    /// The embedding has the direction of Σ wᵢ·zᵢ/|zᵢ| and the weighted mean of the lengths. A negative weight moves away
    /// from its source. Each caption is drawn by the prior once. The decoder reads the request's caption beside it, by
    /// default none.
    ///
    /// # Errors
    /// When there is no source, a weight is not finite, the sources cancel one another, or an option is out of range.
    pub fn mix(&self, sources: &[(Source, f64)], request: impl Into<GenerateRequest>) -> Result<Generation> {
        self.mix_with(sources, request, &mut Controls::new())
    }

    /// Like [`Pipeline::mix`], with controls.
    ///
    /// # Errors
    /// As [`Pipeline::mix`], and when the hook stops it.
    pub fn mix_with(
        &self,
        sources: &[(Source, f64)],
        request: impl Into<GenerateRequest>,
        controls: &mut Controls<'_>,
    ) -> Result<Generation> {
        let request = request.into().without_start()?.settled();
        if sources.is_empty() {
            return Err(Error::Input("nothing to mix: give at least one image or caption".into()));
        }
        let mut parts = Vec::with_capacity(sources.len());
        for (index, (source, weight)) in sources.iter().enumerate() {
            if !weight.is_finite() {
                return Err(Error::Input(format!("weight {index} of a mix is {weight}: it must be finite")));
            }
            parts.push((read(self.embed_source(source, &request, controls)?)?, *weight));
        }
        let mixed = weighted(&parts)?;
        let embedding = Tensor::from_data(TensorData::new(mixed.clone(), [1, mixed.len()]), &self.device);
        self.generate_from(request.embeddings(embedding), &mut *controls.noise, &mut *controls.hook)
    }
}

/// The values of an embedding `[1, D]`.
pub(super) fn read(embedding: Tensor<2>) -> Result<Vec<f32>> {
    let values: Vec<f32> =
        embedding.try_into_vec_as().map_err(|e| Error::Device(format!("reading an embedding: {e}")))?;
    match values.iter().all(|value| value.is_finite()) {
        true => Ok(values),
        false => Err(Error::Input("an embedding holds a value that is not finite".into())),
    }
}

/// Weighted mean of directions, with the weighted mean of the lengths.
fn weighted(parts: &[(Vec<f32>, f64)]) -> Result<Vec<f32>> {
    let total: f64 = parts.iter().map(|(_, weight)| weight.abs()).sum();
    let mut sum = vec![0.0; parts[0].0.len()];
    let mut length = 0.0;
    for (index, (values, weight)) in parts.iter().enumerate() {
        let norm = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        if norm == 0.0 {
            return Err(Error::Input(format!("embedding {index} of a mix is zero and has no direction")));
        }
        length += weight.abs() * norm / total;
        for (sum, value) in sum.iter_mut().zip(values) {
            *sum += weight / total * f64::from(*value) / norm;
        }
    }
    let norm = sum.iter().map(|value| value * value).sum::<f64>().sqrt();
    if norm.is_nan() || norm < CANCELLED {
        return Err(Error::Input("the sources of a mix cancel one another: change the weights".into()));
    }
    Ok(sum.into_iter().map(|value| (value / norm * length) as f32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_are_weighted_whatever_their_lengths() {
        let mixed = weighted(&[(vec![3.0, 0.0], 1.0), (vec![0.0, 1.0], 1.0)]).unwrap();
        let half = 2.0 * std::f32::consts::FRAC_1_SQRT_2;
        assert!(mixed.iter().all(|value| (value - half).abs() < 1e-6), "{mixed:?}");
        let alone = weighted(&[(vec![0.5, -2.0], 0.3)]).unwrap();
        assert!((alone[0] - 0.5).abs() < 1e-6 && (alone[1] + 2.0).abs() < 1e-6);
        let away = weighted(&[(vec![1.0, 1.0], 1.0), (vec![0.0, 1.0], -std::f64::consts::FRAC_1_SQRT_2)]).unwrap();
        assert!((away[0] - 1.0).abs() < 0.5 && away[1].abs() < 1e-6, "{away:?}");
    }

    #[test]
    fn what_cancels_or_has_no_direction_is_refused() {
        let error = |parts: &[(Vec<f32>, f64)]| weighted(parts).unwrap_err().to_string();
        assert!(error(&[(vec![1.0, 0.0], 1.0), (vec![-2.0, 0.0], 1.0)]).contains("cancel"));
        assert!(error(&[(vec![1.0, 0.0], 0.0)]).contains("cancel"));
        assert!(error(&[(vec![1.0, 0.0], 1.0), (vec![0.0, 0.0], 1.0)]).contains("embedding 1"));
    }
}
