//! The diffusion prior as a part of a pipeline.

use std::collections::BTreeMap;
use std::path::Path;

use burn::prelude::*;
use dalle2_core::diffusion::{NoiseSchedule, NoiseSource, draw, guide_halves, sample};
use dalle2_core::nn::l2_normalize;
use dalle2_core::store::{self, Precision};
use dalle2_core::{Component, EmbeddingScale, Error, Prior, Result, SampleOptions, StepEvent, StepHook, TextCondition};

use super::{DiffusionPriorConfig, PriorNetwork};

/// A prior that draws image embeddings by diffusion (DALL·E 2, section 2.2).
///
/// The network predicts the clean embedding in the space of [`DiffusionPriorConfig::image_scale`]. Several candidates
/// are drawn per caption and the one with the highest cosine of z_i and z_t is kept.
#[derive(Debug, Clone)]
pub struct DiffusionPrior {
    config: DiffusionPriorConfig,
    network: PriorNetwork,
    schedule: NoiseSchedule,
}

impl DiffusionPrior {
    /// Class name in configuration files.
    pub const CLASS: &'static str = "Dalle2DiffusionPrior";

    /// Puts a network and its configuration together.
    ///
    /// # Errors
    /// When the configuration is not valid.
    pub fn new(config: DiffusionPriorConfig, network: PriorNetwork) -> Result<Self> {
        config.validate()?;
        let schedule = config.noise_schedule()?;
        Ok(Self { config, network: network.valid(), schedule })
    }

    /// The configuration.
    pub fn config(&self) -> &DiffusionPriorConfig {
        &self.config
    }

    /// The network.
    pub fn network(&self) -> &PriorNetwork {
        &self.network
    }

    /// Reads what [`save`](Component::save) wrote.
    ///
    /// # Errors
    /// When a file is missing or damaged, the configuration is not valid, or the tensors do not match it.
    pub fn load(dir: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let dir = dir.as_ref();
        let config: DiffusionPriorConfig = store::read_config(dir, Self::CLASS)?;
        let network = config.init(device).map_err(|e| Error::format(dir.join(store::CONFIG_FILE), e.to_string()))?;
        Self::new(config, store::load_module(network, dir.join(store::WEIGHTS_FILE))?)
    }

    fn check(&self, name: &str, text: &TextCondition) -> Result<()> {
        let ([batch, embed], [tokens_batch, s, w]) = (text.pooled.dims(), text.tokens.dims());
        let expected = [self.config.context_length, self.config.token_width, self.config.embed_dim];
        if [s, w, embed] != expected {
            let [needs_s, needs_w, needs_d] = expected;
            return Err(Error::Mismatch(format!(
                "the prior reads {needs_s} tokens of width {needs_w} and embeddings of width {needs_d}; \
                 the {name} has {s} tokens of width {w} and an embedding of width {embed}"
            )));
        }
        if batch == 0 || tokens_batch != batch || text.mask.dims() != [batch, s] {
            return Err(Error::Input(format!(
                "the {name} has {batch} embeddings, {tokens_batch} rows of tokens and a mask of {:?}",
                text.mask.dims()
            )));
        }
        // One number, so one round trip to the device: infinities and NaN survive the sum of magnitudes.
        let sum = text.pooled.clone().abs().sum() + text.tokens.clone().abs().sum();
        match sum.into_scalar::<f32>().is_finite() {
            true => Ok(()),
            false => Err(Error::Input(format!("the encoded {name} for the prior holds a value that is not finite"))),
        }
    }

    /// Draws one scaled embedding per row of `text`.
    fn diffuse(
        &self,
        text: &TextCondition,
        null: &TextCondition,
        options: &SampleOptions,
        noise: &mut dyn NoiseSource,
        hook: StepHook<'_>,
    ) -> Result<Tensor<2>> {
        let (batch, config) = (text.batch_size(), &self.config);
        let plan = options.plan(&self.schedule, &config.defaults())?;
        let guidance = options.guidance.unwrap_or(config.guidance);
        let prefix = match guidance {
            1.0 => self.network.prefix(text),
            _ => self.network.prefix(&null.repeat_interleave(batch).cat(text.clone())), // [uncond, cond]
        };
        // Outside its interval guidance is off, and the conditional half is all that is computed.
        let unguided = (guidance != 1.0 && options.guidance_interval.is_some()).then(|| self.network.prefix(text));
        let mut denoise = |x_t: Tensor<2>, t: usize| {
            let x_start = match (guidance, &unguided) {
                (1.0, _) => self.network.forward_from(&prefix, x_t, t),
                (_, Some(unguided)) if !options.guides_at(t, config.train_steps) => {
                    self.network.forward_from(unguided, x_t, t)
                }
                _ => guide_halves(self.network.forward_from(&prefix, x_t.repeat_dim(0, 2), t), guidance),
            };
            Ok(config.x_start_bound.project(x_start).into())
        };
        let x_t = draw(noise, [batch, config.embed_dim], &text.pooled.device())?;
        let mut on_step = |step, total, _: &Tensor<2>| hook(StepEvent { step, total, x_start: None });
        sample(&plan, &config.sampler_options(options.sampler), x_t, &mut denoise, noise, &mut on_step)
    }

    /// From the scaled space to CLIP's; embeddings that live on a sphere are put onto it.
    fn unscale(&self, scaled: Tensor<2>) -> Tensor<2> {
        match &self.config.image_scale {
            EmbeddingScale::L2 => l2_normalize(scaled),
            scale => scale.unscale(scaled),
        }
    }
}

/// Of each caption's consecutive candidates, the one with the highest cosine to the caption's embedding.
///
/// # Shapes
/// - candidates: `[B * n, D]`
/// - text: `[B, D]`
/// - output: `[B, D]`
fn closest(candidates: Tensor<2>, text: Tensor<2>) -> Tensor<2> {
    let ([rows, d], batch) = (candidates.dims(), text.dims()[0]);
    let n = rows / batch;
    let images = l2_normalize(candidates.clone()).reshape([batch, n, d]);
    let cosine = (images * l2_normalize(text).unsqueeze_dim::<3>(1)).sum_dim(2).squeeze_dim::<2>(2); // [B, n]
    let best = cosine.argmax(1).unsqueeze_dim::<3>(2).expand([batch, 1, d]);
    candidates.reshape([batch, n, d]).gather(1, best).squeeze_dim::<2>(1)
}

impl Component for DiffusionPrior {
    fn class_name(&self) -> &str {
        Self::CLASS
    }

    fn save(&self, dir: &Path, precision: Precision) -> Result<()> {
        store::write_config(dir, Self::CLASS, &self.config)?;
        store::save_module(&self.network, dir.join(store::WEIGHTS_FILE), precision, &BTreeMap::new())
    }
}

impl Prior for DiffusionPrior {
    fn sample(
        &self,
        text: &TextCondition,
        null: &TextCondition,
        options: &SampleOptions,
        noise: &mut dyn NoiseSource,
        hook: StepHook<'_>,
    ) -> Result<Tensor<2>> {
        Prior::validate(self, options)?;
        self.check("caption", text)?;
        self.check("empty caption", null)?;
        if null.batch_size() != 1 {
            return Err(Error::Input(format!("one empty caption is needed for guidance, got {}", null.batch_size())));
        }
        let candidates = options.candidates.unwrap_or(self.config.candidates);
        let scaled = self.diffuse(&text.repeat_interleave(candidates), null, options, noise, hook)?;
        let embeddings = self.unscale(scaled);
        match candidates {
            1 => Ok(embeddings),
            _ => Ok(closest(embeddings, text.pooled.clone())),
        }
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

    fn defaults(&self) -> SampleOptions {
        self.config.defaults()
    }

    fn validate(&self, options: &SampleOptions) -> Result<()> {
        options.validate(self.config.train_steps)?;
        options.plan(&self.schedule, &self.config.defaults())?;
        Ok(self.config.sampler_options(options.sampler).validate()?)
    }
}

#[cfg(test)]
mod tests;
