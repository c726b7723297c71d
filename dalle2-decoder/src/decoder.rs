//! The decoder P(x | z_i, y) (DALL·E 2, section 2.1).

use std::collections::BTreeMap;
use std::path::Path;

use burn::prelude::*;
use dalle2_core::diffusers::IndexEntry;
use dalle2_core::diffusion::{Known, NoiseSchedule, NoiseSource, Resampling};
use dalle2_core::store;
use dalle2_core::{
    Captions, Component, DdimInversion, Decoder, DiffusionOptions, Error, FloatType, Inpainting, LoadOptions, Network,
    Result, StepHook, on_pool,
};

use crate::DecoderConfig;
use crate::channels::known_channels;
use crate::conditioning::{Condition, Conditioning};
use crate::import::{self, DecoderFiles};
use crate::sampling::{self, Batch, NetworkOutput, SamplingRun, Task, split_variance};
use crate::unet::{UNet, UNetContext};

/// Class name in the configuration file.
const CLASS: &str = "Dalle2Decoder";

/// The trained part of the decoder: the U-Net and the projections of its conditions.
#[derive(Module, Debug)]
pub struct DecoderNetwork {
    /// The U-Net.
    pub unet: UNet,
    /// The projections of the conditions.
    pub conditioning: Conditioning,
}

/// Conditions projected once for all sampling steps.
#[derive(Debug, Clone)]
pub(crate) struct Prepared {
    time: Tensor<2>,
    context: UNetContext,
}

impl DecoderConfig {
    /// Builds the network of a [valid](Self::validate) configuration with fresh weights.
    pub fn init(&self, device: &Device) -> DecoderNetwork {
        let context_dim = self.unet.context_dim.unwrap_or_default();
        DecoderNetwork { unet: self.unet.init(device), conditioning: Conditioning::new(self, context_dim, device) }
    }

    /// Concatenates the input channels: the noisy images, and if the network has channels for them, its previous estimate of
    /// the clean images (initially zero) and the known pixels.
    ///
    /// # Shapes
    /// - x_t, estimate: `[B, 3, H, W]`
    /// - result: `[B, in_channels, H, W]`
    pub(crate) fn input(&self, x_t: Tensor<4>, estimate: Option<Tensor<4>>, known: Option<&Known<4>>) -> Tensor<4> {
        let mut parts = vec![x_t.clone()];
        if self.self_conditioning {
            parts.push(estimate.unwrap_or_else(|| x_t.zeros_like()));
        }
        if self.inpainting {
            parts.push(known_channels(known, &x_t));
        }
        if parts.len() == 1 { x_t } else { Tensor::cat(parts, 1) }
    }
}

impl DecoderNetwork {
    /// Projects conditions for every attention block.
    pub(crate) fn prepare(&self, condition: Condition) -> Prepared {
        Prepared { time: condition.time, context: self.unet.context(condition.tokens, &condition.mask) }
    }

    /// The network's raw output, 6 channels when the variance is learned.
    ///
    /// # Shapes
    /// `x: [B, in_channels, H, W]`, `t: [B]` or `[1]` -> `[B, 3 or 6, H, W]`
    pub(crate) fn forward(&self, x: Tensor<4>, t: &[usize], prepared: &Prepared) -> Tensor<4> {
        let emb = self.unet.time_embedding(t, &x.device()) + prepared.time.clone();
        self.unet.forward(x, emb, Some(&prepared.context))
    }
}

/// A decoder that can be sampled.
#[derive(Debug, Clone)]
pub struct UnclipDecoder {
    config: DecoderConfig,
    network: Network<DecoderNetwork>,
    schedule: NoiseSchedule,
    /// The configuration files of diffusers that it was loaded from, to be written back unchanged.
    files: Option<DecoderFiles>,
}

impl UnclipDecoder {
    /// Class name in configuration files.
    pub const CLASS: &'static str = CLASS;

    /// Creates a decoder from a network and its configuration.
    ///
    /// # Errors
    /// If the configuration is invalid.
    pub fn new(config: DecoderConfig, network: DecoderNetwork) -> Result<Self> {
        Self::from_network(config, network.valid().into())
    }

    fn from_network(config: DecoderConfig, network: Network<DecoderNetwork>) -> Result<Self> {
        config.validate()?;
        let schedule = config.diffusion.noise_schedule()?;
        Ok(Self { config, network, schedule, files: None })
    }

    /// The configuration.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The network, loaded from disk if it is not resident.
    ///
    /// # Errors
    /// If reading fails.
    pub fn network(&self) -> Result<DecoderNetwork> {
        self.network.get()
    }

    /// Loads the files of [`save`](dalle2_core::Component::save).
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
        let config: DecoderConfig = store::read_config(dir, CLASS)?;
        config.validate().map_err(|e| Error::format(dir.join(store::CONFIG_FILE), e.to_string()))?;
        let (build, device, path) = (config.clone(), options.device.clone(), dir.join(store::WEIGHTS_FILE));
        let network = options.hold(move |reading| reading.own_module(build.init(&device), &path))?;
        Self::from_network(config, network)
    }

    /// Reads the folders `decoder`, `text_proj` and `decoder_scheduler` of a diffusers unCLIP pipeline.
    ///
    /// # Errors
    /// If a file is missing or damaged, holds a setting that this library cannot express, or the tensors do not match
    /// the configuration.
    pub fn load_diffusers(root: impl AsRef<Path>, options: &LoadOptions) -> Result<Self> {
        let (config, files) = import::read_decoder(root.as_ref())?;
        let (build, device, root) = (config.clone(), options.device.clone(), root.as_ref().to_owned());
        let network = options.hold(move |reading| import::load_decoder(reading, build.init(&device), &root))?;
        Ok(Self { files: Some(files), ..Self::from_network(config, network)? })
    }

    pub(crate) fn schedule(&self) -> &NoiseSchedule {
        &self.schedule
    }

    /// Samples images from captions alone: the network reads its learned null embedding in place of an image embedding, as
    /// in training without an image (DALL·E 2, section 5.1).
    ///
    /// # Errors
    /// As [`sample`](dalle2_core::Decoder::sample).
    pub fn sample_captions(
        &self,
        captions: Captions<'_>,
        options: &DiffusionOptions,
        noise: &mut dyn NoiseSource,
        hook: StepHook<'_>,
    ) -> Result<Tensor<4>> {
        self.run(None, captions, Task::Sample { keep: None, noise }, options, hook)
    }

    fn check(&self, embedding: Option<&Tensor<2>>, captions: Captions<'_>) -> Result<()> {
        let Captions { text, null } = captions;
        let [b, d] = embedding.map_or([text.batch_size(), self.config.embed_dim], |embedding| embedding.dims());
        let [text_b, s, w] = text.tokens.dims();
        let [null_b, null_s, _] = null.tokens.dims();
        if d != self.config.embed_dim || w != self.config.token_width {
            return Err(Error::Mismatch(format!(
                "the decoder reads embeddings of width {} and token encodings of width {}, got {d} and {w}",
                self.config.embed_dim, self.config.token_width
            )));
        }
        if let Some(encoder) = &self.config.caption_encoder {
            if text.mask.ids().is_none() || null.mask.ids().is_none() {
                let message = "the decoder has a caption encoder, but the text encoder gives no token ids";
                return Err(Error::Mismatch(message.into()));
            }
            if s > encoder.context_length {
                let message =
                    format!("{s} tokens for a decoder whose caption encoder reads {}", encoder.context_length);
                return Err(Error::Mismatch(message));
            }
        }
        if text_b != b || null_b != 1 || null_s != s {
            return Err(Error::Input(format!(
                "{b} embeddings need {b} captions and one empty caption of {s} tokens, got {text_b}, {null_b} of {null_s}"
            )));
        }
        let sum = embedding.map(|embedding| embedding.clone().abs().sum().into_scalar::<f32>());
        if !sum.is_none_or(f32::is_finite) {
            return Err(Error::Input("an image embedding for the decoder holds a value that is not finite".into()));
        }
        Ok(())
    }
}

impl Component for UnclipDecoder {
    fn class_name(&self) -> &str {
        CLASS
    }

    fn save(&self, dir: &Path, float_type: FloatType) -> Result<()> {
        store::write_config(dir, CLASS, &self.config)?;
        store::save_module(&self.network.get()?, dir.join(store::WEIGHTS_FILE), float_type, &BTreeMap::new())
    }

    fn diffusers_faults(&self) -> Vec<String> {
        import::decoder_faults(&self.config)
    }

    fn save_diffusers(&self, root: &Path, float_type: FloatType) -> Result<Vec<IndexEntry>> {
        let files = self.files.clone().unwrap_or_else(|| import::decoder_files(&self.config));
        import::save_decoder(self.network.get()?, &files, root, float_type)
    }
}

impl UnclipDecoder {
    /// Runs a task under these conditions; without an embedding, under the captions alone.
    fn run(
        &self,
        embedding: Option<&Tensor<2>>,
        captions: Captions<'_>,
        task: Task<'_>,
        options: &DiffusionOptions,
        hook: StepHook<'_>,
    ) -> Result<Tensor<4>> {
        let run = self.sampling_run(options)?;
        self.check(embedding, captions)?;
        let network = self.network.get()?;
        let prepared = self.project(&network, embedding, captions, &run);
        let (size, device) = (self.config.image_size, prepared.device());
        let shape = [captions.text.batch_size(), 3, size, size];
        let known = task.known_pixels(shape, self.config.inpainting)?;
        let (config, batch) = (&self.config, Batch { shape, device: &device, known: known.as_ref() });
        let mut estimate = None;
        let denoise = |x_t: Tensor<4>, t: usize| {
            let input = config.input(x_t.clone(), estimate.take(), known.as_ref().map(|pixels| &pixels.known));
            let output = on_pool(&device, || prepared.forward(&network, input, t, &run));
            if config.self_conditioning {
                estimate = Some(run.x_start(&output, x_t, t));
            }
            output
        };
        run.run(task, &batch, denoise, hook)
    }

    fn sampling_run(&self, options: &DiffusionOptions) -> Result<SamplingRun<'_>> {
        SamplingRun::new(&self.config.diffusion, &self.schedule, options)
    }
}

/// Conditions projected once for all steps of a run.
struct Guided {
    /// `[uncond, cond]` with guidance, else `[cond]`.
    both: Prepared,
    /// The conditional side alone, for timesteps outside the guidance interval.
    cond: Option<Prepared>,
    learned_variance: bool,
}

impl UnclipDecoder {
    /// Projects the conditions of a run.
    fn project(
        &self,
        network: &DecoderNetwork,
        embedding: Option<&Tensor<2>>,
        captions: Captions<'_>,
        run: &SamplingRun<'_>,
    ) -> Guided {
        let (conditioning, batch) = (&network.conditioning, captions.text.batch_size());
        let scaled = embedding.map_or_else(|| conditioning.null(batch), |z| conditioning.scale(z.clone()));
        let cond = conditioning.forward(scaled, captions.text);
        let unguided = run.guidance_interval.map(|_| network.prepare(cond.clone()));
        let both = if run.guidance == 1.0 {
            network.prepare(cond)
        } else {
            let null = captions.null.repeat_interleave(batch);
            network.prepare(conditioning.forward(conditioning.null(batch), &null).cat(cond))
        };
        Guided { both, cond: unguided, learned_variance: self.config.unet.out_channels == 6 }
    }
}

impl Guided {
    fn device(&self) -> Device {
        self.both.time.device()
    }

    /// The network's prediction, guided at the timesteps of the interval.
    fn forward(&self, network: &DecoderNetwork, input: Tensor<4>, t: usize, run: &SamplingRun<'_>) -> NetworkOutput {
        if run.guides_at(t) {
            let doubled = input.repeat_dim(0, 2); // [B, C, H, W] -> [2B, C, H, W]
            let output = network.forward(doubled, &[t], &self.both);
            return split_variance(output, self.learned_variance).guided(run.guidance);
        }
        let cond = self.cond.as_ref().unwrap_or(&self.both);
        split_variance(network.forward(input, &[t], cond), self.learned_variance)
    }
}

impl Decoder for UnclipDecoder {
    fn sample(
        &self,
        embedding: &Tensor<2>,
        captions: Captions<'_>,
        keep: Option<&Inpainting>,
        options: &DiffusionOptions,
        noise: &mut dyn NoiseSource,
        hook: StepHook<'_>,
    ) -> Result<Tensor<4>> {
        self.run(Some(embedding), captions, Task::Sample { keep, noise }, options, hook)
    }

    fn invert(
        &self,
        images: &Tensor<4>,
        embedding: &Tensor<2>,
        captions: Captions<'_>,
        options: &DdimInversion<DiffusionOptions>,
        hook: StepHook<'_>,
    ) -> Result<Tensor<4>> {
        let task = Task::Invert { images, evaluations: options.evaluations };
        self.run(Some(embedding), captions, task, &options.sampling, hook)
    }

    fn embed_dim(&self) -> usize {
        self.config.embed_dim
    }

    fn token_width(&self) -> usize {
        self.config.token_width
    }

    fn image_size(&self) -> usize {
        self.config.image_size
    }

    fn defaults(&self) -> DiffusionOptions {
        self.config.diffusion.defaults()
    }

    fn num_steps(&self, options: &DiffusionOptions, resampling: Option<Resampling>) -> Result<usize> {
        let resampling = resampling.map(|requested| sampling::resampling(requested, self.config.inpainting));
        Ok(self.sampling_run(options)?.num_steps(resampling))
    }
}
