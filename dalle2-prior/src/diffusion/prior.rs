//! The diffusion prior as a part of a pipeline.

use std::collections::BTreeMap;
use std::path::Path;

use burn::prelude::*;
use dalle2_core::diffusers::IndexEntry;
use dalle2_core::diffusion::{
    AnalyticEstimator, GuidanceInterval, NoiseSchedule, NoiseSource, SamplerOptions, SamplingPlan, draw, guide_halves,
    sample,
};
use dalle2_core::nn::l2_normalize;
use dalle2_core::store;
use dalle2_core::{
    Captions, Component, EmbeddingScale, Error, FloatType, LoadOptions, Network, Prior, PriorOptions, Result,
    StepEvent, StepHook, TextCondition, on_pool,
};

use super::{DiffusionPriorConfig, PriorNetwork};
use crate::caption::{CaptionForm, closest};
use crate::import::{self, PriorFiles};

/// A prior that samples image embeddings by diffusion (DALL·E 2, section 2.2).
///
/// The network predicts the clean embedding in the space of [`DiffusionPriorConfig::image_scale`]. Of several candidates per
/// caption, the one with the highest cosine of z_i and z_t is returned.
#[derive(Debug, Clone)]
pub struct DiffusionPrior {
    config: DiffusionPriorConfig,
    network: Network<PriorNetwork>,
    schedule: NoiseSchedule,
    /// The configuration files of diffusers that it was loaded from, to be written back unchanged.
    files: Option<PriorFiles>,
}

/// Checked options of one run, with its sampling plan.
struct CheckedOptions {
    plan: SamplingPlan,
    sampler: SamplerOptions,
    guidance: f64,
    guidance_interval: Option<GuidanceInterval>,
    candidates: usize,
}

impl DiffusionPrior {
    /// Class name in configuration files.
    pub const CLASS: &'static str = "Dalle2DiffusionPrior";

    /// Creates a prior from a network and its configuration.
    ///
    /// # Errors
    /// If the configuration is invalid.
    pub fn new(config: DiffusionPriorConfig, network: PriorNetwork) -> Result<Self> {
        Self::from_network(config, network.valid().into())
    }

    fn from_network(config: DiffusionPriorConfig, network: Network<PriorNetwork>) -> Result<Self> {
        config.validate()?;
        let schedule = config.diffusion.noise_schedule()?;
        Ok(Self { config, network, schedule, files: None })
    }

    /// The configuration.
    pub fn config(&self) -> &DiffusionPriorConfig {
        &self.config
    }

    /// The network, loaded from disk if it is not resident.
    ///
    /// # Errors
    /// If reading fails.
    pub fn network(&self) -> Result<PriorNetwork> {
        self.network.get()
    }

    /// Loads the files of [`save`](Component::save).
    ///
    /// # Errors
    /// If a file is missing or damaged, the configuration is invalid, or the tensors do not match it.
    pub fn load(dir: impl AsRef<Path>, device: &Device) -> Result<Self> {
        Self::load_with(dir, &LoadOptions::new(device))
    }

    /// As [`load`](Self::load), with options.
    ///
    /// # Errors
    /// As [`load`](Self::load), and if the device does not support the options.
    pub fn load_with(dir: impl AsRef<Path>, options: &LoadOptions) -> Result<Self> {
        let dir = dir.as_ref();
        let config: DiffusionPriorConfig = store::read_config(dir, Self::CLASS)?;
        config.validate().map_err(|e| Error::format(dir.join(store::CONFIG_FILE), e.to_string()))?;
        let (build, device, path) = (config.clone(), options.device.clone(), dir.join(store::WEIGHTS_FILE));
        let network = options.hold(move |reading| reading.own_module(build.init(&device), &path))?;
        Self::from_network(config, network)
    }

    /// Reads the folders `prior` and `prior_scheduler` of a diffusers unCLIP pipeline.
    ///
    /// # Errors
    /// If a file is missing or damaged, holds a setting that this library cannot express, or the tensors do not match
    /// the configuration.
    pub fn load_diffusers(root: impl AsRef<Path>, options: &LoadOptions) -> Result<Self> {
        let (config, files) = import::read_prior(root.as_ref())?;
        let (build, device, root) = (config.clone(), options.device.clone(), root.as_ref().to_owned());
        let network = options.hold(move |reading| import::load_prior(reading, build.init(&device), &build, &root))?;
        Ok(Self { files: Some(files), ..Self::from_network(config, network)? })
    }

    /// Measures the variance of DDPM's steps that is best for some pairs of the training data, and samples with it from now
    /// on (Bao et al. 2022, arXiv 2201.06503; the paper's prior does). It is saved with the configuration.
    ///
    /// # Shapes
    /// - text: B captions
    /// - image: `[B, D]`, their image embeddings in CLIP's space
    ///
    /// # Errors
    /// If the captions or embeddings do not fit the prior, `timesteps` is 0 or above the number of the schedule, or the
    /// noise source fails.
    pub fn with_measured_variance(
        mut self,
        text: &TextCondition,
        image: Tensor<2>,
        timesteps: usize,
        noise: &mut dyn NoiseSource,
    ) -> Result<Self> {
        self.form().check("caption", text)?;
        if image.dims() != text.pooled.dims() {
            let (found, expected) = (image.dims(), text.pooled.dims());
            return Err(Error::Mismatch(format!("image embeddings of shape {found:?} for captions of {expected:?}")));
        }
        let plan = SamplingPlan::new(&self.schedule, timesteps)?;
        let network = self.network.get()?;
        let (x_start, prefix) = (self.config.image_scale.scale(image), network.prefix(text));
        let (shape, device) = (x_start.dims(), x_start.device());
        let mut estimator = AnalyticEstimator::new();
        for t in plan.timesteps() {
            let x_t = self.schedule.q_sample(x_start.clone(), &vec![t; shape[0]], draw(noise, shape, &device)?);
            let predicted = network.forward_from(&prefix, x_t, t, None);
            estimator.add(t, x_start.clone(), self.config.diffusion.clip().apply(predicted))?;
        }
        self.config.analytic_variance = Some(estimator.finish()?);
        Ok(self)
    }

    fn form(&self) -> CaptionForm {
        let DiffusionPriorConfig { context_length, token_width, embed_dim, .. } = self.config;
        CaptionForm { context_length, token_width, embed_dim }
    }

    /// Samples one scaled embedding per row of `captions.text`.
    fn diffuse(
        &self,
        captions: Captions<'_>,
        checked: &CheckedOptions,
        noise: &mut dyn NoiseSource,
        hook: StepHook<'_>,
    ) -> Result<Tensor<2>> {
        let Captions { text, null } = captions;
        let (batch, config, network) = (text.batch_size(), &self.config, self.network.get()?);
        let guidance = checked.guidance;
        let device = text.pooled.device();
        let prefix = on_pool(&device, || match guidance {
            1.0 => network.prefix(text),
            _ => network.prefix(&null.repeat_interleave(batch).cat(text.clone())), // [uncond, cond]
        });
        // Outside its interval guidance is off, and the conditional half is all that is computed.
        let interval = checked.guidance_interval.filter(|_| guidance != 1.0);
        let unguided = interval.map(|interval| (interval, network.prefix(text)));
        let mut last: Option<Tensor<2>> = None; // the network's previous estimate, for self-conditioning
        let mut denoise = |x_t: Tensor<2>, t: usize| {
            let estimate = last.take();
            let x_start = on_pool(&device, || match (guidance, &unguided) {
                (1.0, _) => network.forward_from(&prefix, x_t, t, estimate),
                (_, Some((interval, unguided))) if !interval.contains(t, config.diffusion.train_steps) => {
                    network.forward_from(unguided, x_t, t, estimate)
                }
                _ => {
                    let estimate = estimate.map(|estimate| estimate.repeat_dim(0, 2));
                    guide_halves(network.forward_from(&prefix, x_t.repeat_dim(0, 2), t, estimate), guidance)
                }
            });
            last = config.self_conditioning.then(|| config.diffusion.clip().apply(x_start.clone()));
            Ok(x_start.into())
        };
        let x_t = draw(noise, [batch, config.embed_dim], &device)?;
        let mut on_step = |step, total, _: &Tensor<2>| hook(StepEvent { step, total, x_start: None });
        sample(&checked.plan, &checked.sampler, x_t, &mut denoise, noise, &mut on_step)
    }

    /// Checks options and plans the timesteps.
    fn check_options(&self, options: &PriorOptions) -> Result<CheckedOptions> {
        let config = &self.config;
        options.validate_diffusion(config.diffusion.train_steps)?;
        let plan = options.diffusion().plan(&self.schedule, &config.defaults().diffusion())?;
        let plan = match &config.analytic_variance {
            Some(table) => plan.with_analytic_variance(table),
            None => plan,
        };
        let sampler = config.sampler_options(options.sampler);
        sampler.validate()?;
        Ok(CheckedOptions {
            plan,
            sampler,
            guidance: options.guidance.unwrap_or(config.diffusion.guidance),
            guidance_interval: options.guidance_interval.or(config.diffusion.guidance_interval),
            candidates: options.candidates.unwrap_or(config.candidates),
        })
    }

    /// From the scaled space to CLIP's; embeddings that live on a sphere are put onto it.
    fn unscale(&self, scaled: Tensor<2>) -> Tensor<2> {
        match &self.config.image_scale {
            EmbeddingScale::L2 => l2_normalize(scaled),
            scale => scale.unscale(scaled),
        }
    }
}

impl Component for DiffusionPrior {
    fn class_name(&self) -> &str {
        Self::CLASS
    }

    fn save(&self, dir: &Path, float_type: FloatType) -> Result<()> {
        store::write_config(dir, Self::CLASS, &self.config)?;
        store::save_module(&self.network.get()?, dir.join(store::WEIGHTS_FILE), float_type, &BTreeMap::new())
    }

    fn diffusers_faults(&self) -> Vec<String> {
        import::prior_faults(&self.config)
    }

    fn save_diffusers(&self, root: &Path, float_type: FloatType) -> Result<Vec<IndexEntry>> {
        let files = self.files.clone().unwrap_or_else(|| import::prior_files(&self.config));
        import::save_prior(self.network.get()?, &self.config, &files, root, float_type)
    }
}

impl Prior for DiffusionPrior {
    fn sample(
        &self,
        captions: Captions<'_>,
        options: &PriorOptions,
        noise: &mut dyn NoiseSource,
        hook: StepHook<'_>,
    ) -> Result<Tensor<2>> {
        let checked = self.check_options(options)?;
        self.form().check_both(captions)?;
        let repeated = captions.text.repeat_interleave(checked.candidates);
        let scaled = self.diffuse(Captions { text: &repeated, ..captions }, &checked, noise, hook)?;
        Ok(closest(self.unscale(scaled), captions.text.pooled.clone()))
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
        Ok(self.check_options(options)?.plan.num_steps())
    }
}

#[cfg(test)]
mod tests;
