//! The configuration of a training run: a preset, changed by a file and by the command line.

use anyhow::Result;
use dalle2::clip::ClipConfig;
use dalle2::decoder::train::CropOptions;
use dalle2::decoder::{DecoderConfig, UpsamplerConfig};
use dalle2::prior::{AutoregressivePriorConfig, DiffusionPriorConfig};
use dalle2::{ConfigError, Error};
use dalle2_train::{MemoryEstimate, TrainConfig};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// What a run is told; `config.json` in the run's folder has the same form, and `--config` reads it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig<M, O = NoOptions> {
    /// The model.
    pub model: M,
    /// What else the part's training can be told.
    pub options: O,
    /// The trainer.
    pub train: TrainConfig,
}

/// For parts whose training has no options of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoOptions {}

/// Options of a part's training.
pub trait Options: Serialize + DeserializeOwned {
    /// Whether several devices divide each batch, which the part does itself, rather than take a batch each.
    const DIVIDES_BATCHES: bool = false;

    /// Names the first field that is out of range.
    fn check(&self) -> Result<(), ConfigError>;

    /// Items that go through the network at once.
    fn at_once(&self, batch_size: usize) -> usize {
        batch_size
    }
}

impl Options for NoOptions {
    fn check(&self) -> Result<(), ConfigError> {
        Ok(())
    }
}

/// What a preset, a file and settings can configure.
pub trait ModelConfig: Serialize + DeserializeOwned {
    /// Names the first field that cannot work.
    fn check(&self) -> Result<(), ConfigError>;
    /// Number of parameters, without allocating them.
    fn parameters(&self) -> Result<usize, ConfigError>;
    /// Numbers that the forward pass over one item keeps.
    fn kept(&self) -> u64;
}

/// Tokens of a caption where the decoder's configuration does not say.
const CONTEXT_LENGTH: usize = 77;

macro_rules! model_config {
    ($config:ty, $parameters:expr, $kept:expr) => {
        impl ModelConfig for $config {
            fn check(&self) -> Result<(), ConfigError> {
                self.validate()
            }
            fn parameters(&self) -> Result<usize, ConfigError> {
                let count: fn(&Self) -> Result<usize, ConfigError> = $parameters;
                count(self)
            }
            fn kept(&self) -> u64 {
                let kept: fn(&Self) -> u64 = $kept;
                kept(self)
            }
        }
    };
}

model_config!(ClipConfig, |c| Ok(c.num_params()), |c| c.kept_per_pair(c.vision.n_patches()));
model_config!(DiffusionPriorConfig, |c| Ok(c.num_params()), |c| c.kept_per_pair());
model_config!(AutoregressivePriorConfig, |c| Ok(c.num_params()), |c| c.kept_per_pair());
model_config!(DecoderConfig, |c| c.num_params(), |c| c.kept_per_image(CONTEXT_LENGTH));
model_config!(UpsamplerConfig, |c| c.num_params(), |c| c.kept_per_crop(&CropOptions::default()));

impl<M: ModelConfig, O: Options> RunConfig<M, O> {
    /// Names the first field that is out of range.
    pub fn check(&self) -> Result<(), Error> {
        self.model.check().map_err(|e| e.within("model"))?;
        self.options.check().map_err(|e| e.within("options"))?;
        Ok(self.train.validate().map_err(|e| e.within("train"))?)
    }

    /// Items that go at once through the network on each of so many devices.
    fn at_once(&self, devices: usize) -> usize {
        let batch = self.train.batch_size;
        self.options.at_once(if O::DIVIDES_BATCHES { batch.div_ceil(devices) } else { batch })
    }

    /// What the run needs in the memory of each of so many devices.
    pub fn memory(&self, devices: usize) -> Result<MemoryEstimate, ConfigError> {
        let items = self.at_once(devices) as u64;
        Ok(MemoryEstimate::new(self.model.parameters()? as u64, self.model.kept(), items, &self.train))
    }

    /// The configuration as JSON, with the number of parameters and the memory on each of so many devices, for people.
    pub fn describe(&self, devices: usize) -> Result<String> {
        let memory = self.memory(devices)?;
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        Ok(format!(
            "{}\n{:.2} million parameters; about {:.2} GiB to train: {:.2} GiB of weights, gradients, moments and average, \
             {:.2} GiB of activations for a batch of {}{}, before what the device keeps in reserve",
            serde_json::to_string_pretty(self)?,
            self.model.parameters()? as f64 / 1e6,
            gib(memory.total()),
            gib(memory.states),
            gib(memory.activations),
            self.at_once(devices),
            if devices > 1 { format!(", on each of {devices} devices") } else { String::new() },
        ))
    }
}
