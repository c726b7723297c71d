//! The autoregressive prior as a part of a pipeline.

use std::collections::BTreeMap;
use std::path::Path;

use burn::prelude::*;
use dalle2_core::diffusion::{NoiseSource, guide_halves};
use dalle2_core::store;
use dalle2_core::{
    Captions, Component, ConfigError, Error, FloatType, Prior, PriorOptions, Result, StepEvent, StepHook,
    TextCondition, on_pool,
};

use super::config::check_sampling;
use super::sampling::{Choice, uniform};
use super::{AutoregressiveNetwork, AutoregressivePriorConfig, AutoregressiveState, EmbeddingQuantizer};
use crate::caption::{CaptionForm, closest};

/// A prior that samples image embeddings component by component (DALL·E 2, section 2.2).
///
/// The token of the dot product is sampled from the upper half of its distribution. Of several candidates per caption, the
/// one with the highest cosine of z_i and z_t is returned.
#[derive(Debug, Clone)]
pub struct AutoregressivePrior {
    config: AutoregressivePriorConfig,
    network: AutoregressiveNetwork,
    quantizer: EmbeddingQuantizer,
}

impl AutoregressivePrior {
    /// Class name in configuration files.
    pub const CLASS: &'static str = "Dalle2AutoregressivePrior";

    /// Creates a prior from a network, its configuration and its quantizer.
    ///
    /// # Errors
    /// If the configuration is invalid or the quantizer is not the one it describes.
    pub fn new(
        config: AutoregressivePriorConfig,
        network: AutoregressiveNetwork,
        quantizer: EmbeddingQuantizer,
    ) -> Result<Self> {
        config.validate()?;
        quantizer.check(&config)?;
        Ok(Self { config, network: network.valid(), quantizer })
    }

    /// The configuration.
    pub fn config(&self) -> &AutoregressivePriorConfig {
        &self.config
    }

    /// The network.
    pub fn network(&self) -> &AutoregressiveNetwork {
        &self.network
    }

    /// The quantizer of embeddings.
    pub fn quantizer(&self) -> &EmbeddingQuantizer {
        &self.quantizer
    }

    /// Loads the files of [`save`](Component::save).
    ///
    /// # Errors
    /// If a file is missing or damaged, the configuration is invalid, or tensors or edges do not match it.
    pub fn load(dir: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let dir = dir.as_ref();
        let config: AutoregressivePriorConfig = store::read_config(dir, Self::CLASS)?;
        config.validate().map_err(|e| Error::format(dir.join(store::CONFIG_FILE), e.to_string()))?;
        let network = config.init(device);
        let quantizer = EmbeddingQuantizer::load(dir, config.image_scale.clone())?;
        Self::new(config, store::load_module(network, dir.join(store::WEIGHTS_FILE))?, quantizer)
    }

    fn form(&self) -> CaptionForm {
        let AutoregressivePriorConfig { context_length, token_width, embed_dim, .. } = self.config;
        CaptionForm { context_length, token_width, embed_dim }
    }

    /// Samples the candidates' rows of K tokens for each caption, row-major.
    fn sample_tokens(
        &self,
        captions: Captions<'_>,
        options: &PriorOptions,
        noise: &mut dyn NoiseSource,
        hook: StepHook<'_>,
    ) -> Result<Vec<usize>> {
        let Captions { text, null } = captions;
        let candidates = options.candidates.unwrap_or(self.config.candidates);
        let (config, n_captions) = (&self.config, text.batch_size());
        let (rows, k) = (n_captions * candidates, config.components);
        let guidance = options.guidance.unwrap_or(config.guidance);
        let choice = Choice {
            temperature: options.temperature.unwrap_or(config.temperature),
            top_p: options.top_p.unwrap_or(config.top_p),
        };
        let normal = noise.normal(&[rows, 1 + k])?; // the dot product and K components of each row
        if normal.len() != rows * (1 + k) {
            return Err(Error::Input(format!(
                "the noise source gave {} values for shape [{rows}, {}]",
                normal.len(),
                1 + k
            )));
        }
        let chance = |row: usize, i: usize| uniform(normal[row * (1 + k) + i]);

        // Captions are read once each, the empty one too, and then serve all their candidates.
        let own = (0..rows).map(|row| row / candidates);
        let (read, order): (TextCondition, Vec<usize>) = match guidance {
            1.0 => (text.clone(), own.collect()),
            _ => (text.clone().cat(null.clone()), (0..rows).map(|_| n_captions).chain(own).collect()), // [uncond, cond]
        };
        let device = text.pooled.device();
        let mut state = on_pool(&device, || self.network.read_captions(&read).select(&order));
        let half = config.dot_buckets / 2;
        let dots = (0..rows).map(|row| half + (chance(row, 0) * half as f64) as usize);
        let dropped = (0..order.len() - rows).map(|_| config.dot_buckets);
        let dots = self.ids(dropped.chain(dots).collect());
        let mut logits = on_pool(&device, || self.network.read_dot(&mut state, dots));
        let mut tokens = vec![0; rows * k];
        for component in 0..k {
            let guided = if order.len() == rows { logits.clone() } else { guide_halves(logits.clone(), guidance) };
            let values: Vec<f32> =
                guided.try_into_vec_as().map_err(|e| Error::Device(format!("reading logits back: {e}")))?;
            for (row, logits) in values.chunks_exact(config.buckets).enumerate() {
                tokens[row * k + component] = choice.sample(logits, chance(row, 1 + component))?;
            }
            hook(StepEvent { step: component + 1, total: k, x_start: None })?;
            if component + 1 < k {
                let column: Vec<usize> = (0..rows).map(|row| tokens[row * k + component]).collect();
                logits = on_pool(&device, || self.read_column(&mut state, column, order.len() / rows));
            }
        }
        Ok(tokens)
    }

    /// Reads the tokens of one component, once for each half of a guidance batch.
    fn read_column(&self, state: &mut AutoregressiveState, column: Vec<usize>, halves: usize) -> Tensor<2> {
        self.network.read_bucket(state, self.ids(column.repeat(halves)))
    }

    fn ids(&self, values: Vec<usize>) -> Tensor<1, Int> {
        let values: Vec<i64> = values.into_iter().map(|v| v as i64).collect();
        let count = values.len();
        Tensor::from_data(TensorData::new(values, [count]), &self.network.positions.val().device())
    }
}

impl Component for AutoregressivePrior {
    fn class_name(&self) -> &str {
        Self::CLASS
    }

    fn save(&self, dir: &Path, float_type: FloatType) -> Result<()> {
        store::write_config(dir, Self::CLASS, &self.config)?;
        self.quantizer.save(dir)?;
        store::save_module(&self.network, dir.join(store::WEIGHTS_FILE), float_type, &BTreeMap::new())
    }
}

impl Prior for AutoregressivePrior {
    fn sample(
        &self,
        captions: Captions<'_>,
        options: &PriorOptions,
        noise: &mut dyn NoiseSource,
        hook: StepHook<'_>,
    ) -> Result<Tensor<2>> {
        self.num_steps(options)?;
        self.form().check_both(captions)?;
        let pooled = &captions.text.pooled;
        let tokens = self.sample_tokens(captions, options, noise, hook)?;
        Ok(closest(self.quantizer.decode(&tokens, &pooled.device()), pooled.clone()))
    }

    fn embed_dim(&self) -> usize {
        self.config.embed_dim
    }

    fn token_width(&self) -> usize {
        self.config.token_width
    }

    fn context_length(&self) -> usize {
        self.config.context_length
    }

    fn defaults(&self) -> PriorOptions {
        self.config.defaults()
    }

    fn num_steps(&self, options: &PriorOptions) -> Result<usize> {
        if let Some(steps) = options.steps {
            let expected = format!(
                "must be unset: an autoregressive prior takes one step per component, {}",
                self.config.components
            );
            return Err(ConfigError::new("steps", steps, expected).into());
        }
        let debug = |value: Option<String>, field: &'static str| value.map(|value| (field, value));
        let unsupported = debug(options.sampler.map(|v| format!("{v:?}")), "sampler")
            .or_else(|| debug(options.spacing.as_ref().map(|v| format!("{v:?}")), "spacing"))
            .or_else(|| debug(options.guidance_interval.map(|v| format!("{v:?}")), "guidance_interval"));
        if let Some((field, value)) = unsupported {
            let expected = "must be unset: an autoregressive prior has no timesteps, but `temperature` and `top_p`";
            return Err(ConfigError::new(field, value, expected).into());
        }
        check_sampling(options)?;
        Ok(self.config.components)
    }
}

#[cfg(test)]
mod tests;
