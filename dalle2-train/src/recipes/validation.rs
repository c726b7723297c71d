//! Data that a run is validated on.

use std::sync::Arc;

use dalle2_core::{ConfigError, Result};

use super::data::TrainData;
use crate::data::DataSplit;

/// Data that a run is validated on.
#[derive(Debug, Clone, Default)]
pub enum Validation<D> {
    /// The training data. Its metrics are called `training_…`, since they measure the fit and not generalisation.
    #[default]
    Training,
    /// A share of the concepts, with all their captions and images, which training does not see.
    Share(f64),
    /// Other data.
    Data(D),
}

/// Start of the names of metrics that are computed on training data.
const TRAINING_PREFIX: &str = "training_";

/// Labels metrics that are computed on training data.
pub(super) fn label_training(metrics: Vec<(String, f64)>) -> Vec<(String, f64)> {
    metrics.into_iter().map(|(name, value)| (format!("{TRAINING_PREFIX}{name}"), value)).collect()
}

impl<D> Validation<D> {
    /// Labels metrics if they are computed on training data.
    pub(super) fn label(&self, metrics: Vec<(String, f64)>) -> Vec<(String, f64)> {
        match self {
            Self::Training => label_training(metrics),
            Self::Share(_) | Self::Data(_) => metrics,
        }
    }

    /// Reads `SHARE` or the name of a data set, which `open` opens.
    ///
    /// # Errors
    /// If the share is not between 0 and 1, or the data cannot be opened.
    pub fn parse(text: &str, open: impl FnOnce(&str) -> Result<D>) -> Result<Self> {
        match text.parse::<f64>() {
            Ok(share) if share > 0.0 && share < 1.0 => Ok(Self::Share(share)),
            Ok(share) => {
                Err(ConfigError::new("validation", share, "must be a share above 0 and below 1, or a data set").into())
            }
            Err(_) => open(text).map(Self::Data),
        }
    }
}

impl Validation<Arc<dyn TrainData>> {
    /// Divides `data` into training and validation data.
    pub(super) fn split(&self, data: Arc<dyn TrainData>) -> Result<DataSplit<Arc<dyn TrainData>>> {
        match self {
            Self::Training => Ok(DataSplit { train: data.clone(), held_out: data }),
            Self::Share(share) => data.split(*share),
            Self::Data(held_out) => Ok(DataSplit { train: data, held_out: held_out.clone() }),
        }
    }
}
