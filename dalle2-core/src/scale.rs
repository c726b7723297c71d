//! How CLIP embeddings are scaled before a network sees them.

use burn::prelude::*;
use burn::tensor::FloatDType;
use serde::{Deserialize, Serialize};

use crate::{ConfigError, Error, Result};

/// The scale between CLIP's embedding space and the space a prior or decoder works in, where each component
/// should have about unit variance (DALL·E 2 multiplies by a constant, others normalise or use statistics).
///
/// It is stored in the configuration of the part that applies it, so a checkpoint cannot be used with another
/// scale by accident.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum EmbeddingScale {
    /// Embeddings are used as they are.
    None,
    /// Normalise to unit length, then multiply by √d. The inverse gives unit-length embeddings.
    L2,
    /// Multiply by a constant.
    Constant {
        /// The factor, finite and positive.
        factor: f64,
    },
    /// Subtract a mean and divide by a standard deviation, component by component.
    MeanStd {
        /// Mean of each component.
        mean: Vec<f32>,
        /// Standard deviation of each component, positive.
        std: Vec<f32>,
    },
}

impl EmbeddingScale {
    /// Mean and standard deviation of embeddings, component by component, as [`EmbeddingScale::MeanStd`].
    ///
    /// # Shapes
    /// - embeddings: `[N, D]`, N at least 2
    ///
    /// # Errors
    /// When there are fewer than two embeddings, or the values cannot be read.
    pub fn measure(embeddings: Tensor<2>) -> Result<Self> {
        let n = embeddings.dims()[0];
        if n < 2 {
            return Err(Error::Input(format!("{n} embeddings have no deviation: give at least 2")));
        }
        let (variance, mean) = embeddings.var_mean(0);
        let values = |row: Tensor<2>| {
            let values = row.cast(FloatDType::F32).into_data().try_to_vec::<f32>();
            values.map_err(|e| Error::Device(format!("reading the statistics of embeddings: {e}")))
        };
        Ok(Self::MeanStd { mean: values(mean)?, std: values(variance.sqrt())? })
    }

    /// From CLIP's space to the network's.
    ///
    /// # Shapes
    /// `[B, D]` -> `[B, D]`
    pub fn scale(&self, embedding: Tensor<2>) -> Tensor<2> {
        match self {
            Self::None => embedding,
            Self::L2 => {
                let d = embedding.dims()[1] as f64;
                crate::nn::l2_normalize(embedding) * d.sqrt()
            }
            Self::Constant { factor } => embedding * *factor,
            Self::MeanStd { mean, std } => {
                let device = embedding.device();
                (embedding - row(mean, &device)) / row(std, &device)
            }
        }
    }

    /// From the network's space back to CLIP's.
    ///
    /// # Shapes
    /// `[B, D]` -> `[B, D]`
    pub fn unscale(&self, scaled: Tensor<2>) -> Tensor<2> {
        match self {
            Self::None => scaled,
            Self::L2 => {
                let d = scaled.dims()[1] as f64;
                scaled / d.sqrt()
            }
            Self::Constant { factor } => scaled / *factor,
            Self::MeanStd { mean, std } => {
                let device = scaled.device();
                scaled * row(std, &device) + row(mean, &device)
            }
        }
    }

    /// Checks the parameters for embeddings of `dim` components.
    ///
    /// # Errors
    /// When a factor or deviation is not positive and finite, or statistics have another length than `dim`.
    pub fn validate(&self, dim: usize) -> Result<(), ConfigError> {
        match self {
            Self::None | Self::L2 => Ok(()),
            Self::Constant { factor } if factor.is_finite() && *factor > 0.0 => Ok(()),
            Self::Constant { factor } => {
                Err(ConfigError::new("embedding_scale.factor", factor, "must be finite and above 0"))
            }
            Self::MeanStd { mean, std } => {
                for (field, len) in [("embedding_scale.mean", mean.len()), ("embedding_scale.std", std.len())] {
                    if len != dim {
                        let expected = format!("needs one value for each of the {dim} embedding components");
                        return Err(ConfigError::new(field, format!("[{len} values]"), expected));
                    }
                }
                if let Some(bad) = mean.iter().find(|v| !v.is_finite()) {
                    return Err(ConfigError::new("embedding_scale.mean", bad, "must be finite"));
                }
                match std.iter().find(|v| !v.is_finite() || **v <= 0.0) {
                    Some(bad) => Err(ConfigError::new("embedding_scale.std", bad, "must be finite and above 0")),
                    None => Ok(()),
                }
            }
        }
    }
}

fn row(values: &[f32], device: &Device) -> Tensor<2> {
    Tensor::<1>::from_floats(values, device).unsqueeze::<2>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Tolerance;

    #[test]
    fn unscale_inverts_scale() {
        let device = Device::flex();
        let z = Tensor::<2>::from_floats([[3.0, 4.0], [0.6, -0.8]], &device);
        for scale in [
            EmbeddingScale::None,
            EmbeddingScale::Constant { factor: 17.2 },
            EmbeddingScale::MeanStd { mean: vec![0.5, -1.0], std: vec![2.0, 0.25] },
        ] {
            let back = scale.unscale(scale.scale(z.clone()));
            back.into_data().assert_approx_eq::<f32>(&z.clone().into_data(), Tolerance::rel_abs(1e-6, 1e-6));
        }
        let unit = EmbeddingScale::L2.unscale(EmbeddingScale::L2.scale(z));
        let expected = TensorData::from([[0.6f32, 0.8], [0.6, -0.8]]);
        unit.into_data().assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(1e-5, 1e-6));
    }

    #[test]
    fn measured_embeddings_have_unit_variance_when_scaled() {
        let device = Device::flex();
        let z = Tensor::<2>::from_floats([[1.0, 10.0], [3.0, 20.0], [8.0, -30.0]], &device);
        let scale = EmbeddingScale::measure(z.clone()).unwrap();
        assert_eq!(scale, EmbeddingScale::MeanStd { mean: vec![4.0, 0.0], std: vec![13f32.sqrt(), 700f32.sqrt()] });
        let (variance, mean) = scale.scale(z.clone()).var_mean(0);
        let close = |found: Tensor<2>, expected: f32| {
            found
                .into_data()
                .assert_approx_eq::<f32>(&TensorData::from([[expected; 2]]), Tolerance::rel_abs(1e-5, 1e-6));
        };
        close(variance, 1.0);
        close(mean, 0.0);
        assert!(EmbeddingScale::measure(z.narrow(0, 0, 1)).is_err());
    }

    #[test]
    fn bad_parameters_are_named() {
        let short = EmbeddingScale::MeanStd { mean: vec![0.0; 3], std: vec![1.0; 4] };
        assert_eq!(short.validate(4).unwrap_err().field, "embedding_scale.mean");
        let flat = EmbeddingScale::MeanStd { mean: vec![0.0; 2], std: vec![1.0, 0.0] };
        assert_eq!(flat.validate(2).unwrap_err().field, "embedding_scale.std");
        assert!(EmbeddingScale::Constant { factor: f64::NAN }.validate(2).is_err());
    }
}
