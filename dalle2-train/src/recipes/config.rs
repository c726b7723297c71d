//! The configuration of a training run: a preset, changed by a file and by single settings.

use dalle2_clip::ClipConfig;
use dalle2_core::{ConfigError, Error, Result};
use dalle2_decoder::train::CropOptions;
use dalle2_decoder::{DecoderConfig, UpsamplerConfig};
use dalle2_prior::{AutoregressivePriorConfig, DiffusionPriorConfig};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{MemoryEstimate, TrainConfig};

/// The configuration of a run. `config.json` in the run directory has this form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig<M, O = NoOptions> {
    /// The model.
    pub model: M,
    /// Training options of the part.
    pub options: O,
    /// The trainer.
    pub train: TrainConfig,
}

/// For parts without training options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoOptions {}

/// Training options of a part.
pub trait PartOptions: Serialize + DeserializeOwned {
    /// Whether the part divides each batch among several devices itself. Otherwise each device takes a batch.
    const DIVIDES_BATCHES: bool = false;

    /// Checks the options.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    fn check(&self) -> Result<(), ConfigError>;

    /// Returns the number of items in one forward pass.
    fn items_per_pass(&self, batch_size: usize) -> usize {
        batch_size
    }
}

impl PartOptions for NoOptions {
    fn check(&self) -> Result<(), ConfigError> {
        Ok(())
    }
}

/// Configuration of a model that a recipe trains.
pub trait ModelConfig: Serialize + DeserializeOwned {
    /// Checks the configuration.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    fn check(&self) -> Result<(), ConfigError>;

    /// Returns the number of parameters, without allocating them.
    ///
    /// # Errors
    /// If the configuration is not valid.
    fn parameters(&self) -> Result<usize, ConfigError>;

    /// Returns the approximate number of activations saved for backward, per item.
    fn activations(&self) -> u64;
}

/// Tokens of a caption where a configuration does not name them.
const CONTEXT_LENGTH: usize = 77;

macro_rules! model_config {
    ($config:ty, $parameters:expr, $activations:expr) => {
        impl ModelConfig for $config {
            fn check(&self) -> Result<(), ConfigError> {
                self.validate()
            }
            fn parameters(&self) -> Result<usize, ConfigError> {
                let count: fn(&Self) -> Result<usize, ConfigError> = $parameters;
                count(self)
            }
            fn activations(&self) -> u64 {
                let count: fn(&Self) -> u64 = $activations;
                count(self)
            }
        }
    };
}

model_config!(ClipConfig, |c| Ok(c.num_params()), |c| c.kept_per_pair(c.vision.n_patches()));
model_config!(DiffusionPriorConfig, |c| Ok(c.num_params()), |c| c.kept_per_pair());
model_config!(AutoregressivePriorConfig, |c| Ok(c.num_params()), |c| c.kept_per_pair());
model_config!(DecoderConfig, |c| c.num_params(), |c| c.kept_per_image(CONTEXT_LENGTH));
model_config!(UpsamplerConfig, |c| c.num_params(), |c| c.kept_per_crop(&CropOptions::default()));

impl<M: ModelConfig, O: PartOptions> RunConfig<M, O> {
    /// Checks all three sections.
    ///
    /// # Errors
    /// Names the first field that is out of range.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.model.check().map_err(|e| e.within("model"))?;
        self.options.check().map_err(|e| e.within("options"))?;
        self.train.validate().map_err(|e| e.within("train"))
    }

    /// Returns the number of items in one forward pass on each of `devices` devices.
    fn items_per_pass(&self, devices: usize) -> usize {
        let batch = self.train.batch_size;
        self.options.items_per_pass(if O::DIVIDES_BATCHES { batch.div_ceil(devices) } else { batch })
    }

    /// Estimates the memory that the run needs on each of `devices` devices.
    ///
    /// # Errors
    /// If the configuration is not valid.
    pub fn memory(&self, devices: usize) -> Result<MemoryEstimate, ConfigError> {
        let items = self.items_per_pass(devices) as u64;
        Ok(MemoryEstimate::new(self.model.parameters()? as u64, self.model.activations(), items, &self.train))
    }

    /// Describes the run for people: the configuration as JSON, the number of parameters and the memory it needs.
    ///
    /// # Errors
    /// If the configuration is not valid.
    pub fn describe(&self, devices: usize) -> Result<String> {
        let memory = self.memory(devices)?;
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        let json = serde_json::to_string_pretty(self).map_err(|e| Error::json("config.json", e))?;
        let each = if devices > 1 { format!(", on each of {devices} devices") } else { String::new() };
        Ok(format!(
            "{json}\n{:.2} million parameters; about {:.2} GiB to train: {:.2} GiB of weights, gradients, moments and average, \
             {:.2} GiB of activations for a batch of {}{each}, without the device's reserve",
            self.model.parameters()? as f64 / 1e6,
            gib(memory.total()),
            gib(memory.states),
            gib(memory.activations),
            self.items_per_pass(devices),
        ))
    }
}
