//! Mixtures of images and captions.

use burn::prelude::*;
use dalle2_core::{Error, Result};

use super::{Operation, Source};
use crate::Generation;
use crate::request::Start;
use crate::run::Inputs;

/// Share of the parts' length below which their weighted sum counts as zero.
const CANCELLED: f64 = 1e-3;

/// A weighted mixture of sources.
#[derive(Debug, Clone)]
pub struct Mix {
    sources: Vec<(Source, f64)>,
}

impl Mix {
    pub(super) fn new(sources: Vec<(Source, f64)>) -> Self {
        Self { sources }
    }
}

impl Operation<'_, Mix> {
    /// Generates images of the mixture.
    ///
    /// # Errors
    /// If there is no source, a weight is not finite, the sources cancel one another, an option is out of range, or the
    /// hook returns an error.
    pub fn run(self) -> Result<Generation> {
        let Self { pipeline, request, mut controls, kind: Mix { sources } } = self;
        let request = request.without_start()?.with_seed();
        if sources.is_empty() {
            return Err(Error::Input("nothing to mix: give at least one image or caption".into()));
        }
        if let Some((index, (_, weight))) = sources.iter().enumerate().find(|(_, (_, weight))| !weight.is_finite()) {
            return Err(Error::Input(format!("weight {index} of a mix is {weight}: it must be finite")));
        }
        let mut mixed = request.clone();
        mixed.start = Start::Computed;
        let checked = pipeline.check(mixed, None)?;
        let steps = pipeline.embed_steps(sources.iter().map(|(source, _)| source), &request)?;
        controls.reserve(checked.steps() + steps);
        let mut parts = Vec::with_capacity(sources.len());
        for (source, weight) in &sources {
            parts.push((read(pipeline.embed_source(source, &request, &mut controls)?)?, *weight));
        }
        let mixed = weighted(&parts)?;
        let shape = [1, mixed.len()];
        let checked = checked.with_embeddings(Tensor::from_data(TensorData::new(mixed, shape), &pipeline.device));
        pipeline.execute(&checked, Inputs::default(), &mut controls)
    }
}

/// The values of an embedding `[1, D]`.
pub(super) fn read(embedding: Tensor<2>) -> Result<Vec<f32>> {
    let values: Vec<f32> =
        embedding.try_into_vec_as().map_err(|e| Error::Device(format!("reading an embedding: {e}")))?;
    if !values.iter().all(|value| value.is_finite()) {
        return Err(Error::Input("an embedding holds a value that is not finite".into()));
    }
    Ok(values)
}

/// The weighted mean of directions, with the weighted mean of the lengths.
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
    fn weights_act_on_directions_not_lengths() {
        let mixed = weighted(&[(vec![3.0, 0.0], 1.0), (vec![0.0, 1.0], 1.0)]).unwrap();
        let half = 2.0 * std::f32::consts::FRAC_1_SQRT_2;
        assert!(mixed.iter().all(|value| (value - half).abs() < 1e-6), "{mixed:?}");
        let alone = weighted(&[(vec![0.5, -2.0], 0.3)]).unwrap();
        assert!((alone[0] - 0.5).abs() < 1e-6 && (alone[1] + 2.0).abs() < 1e-6);
        let away = weighted(&[(vec![1.0, 1.0], 1.0), (vec![0.0, 1.0], -std::f64::consts::FRAC_1_SQRT_2)]).unwrap();
        assert!((away[0] - 1.0).abs() < 0.5 && away[1].abs() < 1e-6, "{away:?}");
    }

    #[test]
    fn sources_that_cancel_or_are_zero_are_refused() {
        let error = |parts: &[(Vec<f32>, f64)]| weighted(parts).unwrap_err().to_string();
        assert!(error(&[(vec![1.0, 0.0], 1.0), (vec![-2.0, 0.0], 1.0)]).contains("cancel"));
        assert!(error(&[(vec![1.0, 0.0], 0.0)]).contains("cancel"));
        assert!(error(&[(vec![1.0, 0.0], 1.0), (vec![0.0, 0.0], 1.0)]).contains("embedding 1"));
    }
}
