//! The decoder P(x | z_i, y) (DALL·E 2, section 2.1).

use std::collections::BTreeMap;
use std::path::Path;

use burn::prelude::*;
use dalle2_core::diffusers::IndexEntry;
use dalle2_core::diffusion::{Known, NoiseSchedule, NoiseSource};
use dalle2_core::store;
use dalle2_core::{
    Component, ConfigError, Decoder, Error, FloatType, Inpainting, LoadOptions, Network, Result, SampleOptions,
    StepHook, TextCondition, on_pool,
};

use crate::DecoderConfig;
use crate::channels::known_channels;
use crate::conditioning::{Condition, Conditioning};
use crate::import::{self, DecoderFiles};
use crate::sampling::{Kept, Process, Task, split_variance};
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
    /// Builds the network with fresh weights.
    ///
    /// # Errors
    /// When the configuration is not valid.
    pub fn init(&self, device: &Device) -> Result<DecoderNetwork, ConfigError> {
        self.validate()?;
        let context_dim = self.unet.context_dim.unwrap_or_default();
        Ok(DecoderNetwork { unet: self.unet.init(device), conditioning: Conditioning::new(self, context_dim, device) })
    }

    /// What the network reads: the noisy images, and behind them, where it has channels for them, its last estimate of
    /// the clean images (zero if there is none yet) and the known pixels.
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
    /// The configuration files of diffusers that it was read from, to be written again as they were.
    files: Option<DecoderFiles>,
}

impl UnclipDecoder {
    /// Class name in configuration files.
    pub const CLASS: &'static str = CLASS;

    /// Puts a network and its configuration together.
    ///
    /// # Errors
    /// When the configuration is not valid.
    pub fn new(config: DecoderConfig, network: DecoderNetwork) -> Result<Self> {
        Self::hold(config, network.valid().into())
    }

    fn hold(config: DecoderConfig, network: Network<DecoderNetwork>) -> Result<Self> {
        config.validate()?;
        let schedule = config.diffusion.noise_schedule()?;
        Ok(Self { config, network, schedule, files: None })
    }

    /// The configuration.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The network; one that is not resident is read from disk.
    ///
    /// # Errors
    /// When reading fails.
    pub fn network(&self) -> Result<DecoderNetwork> {
        self.network.get()
    }

    /// Reads what [`save`](dalle2_core::Component::save) wrote.
    ///
    /// # Errors
    /// When a file is missing or damaged, the configuration is not valid, or the tensors do not match it.
    pub fn load(dir: impl AsRef<Path>, device: &Device) -> Result<Self> {
        Self::load_with(dir, &LoadOptions::new(device))
    }

    /// As [`load`](Self::load), with options.
    ///
    /// # Errors
    /// As [`load`](Self::load), and when the device cannot do what the options ask for.
    pub fn load_with(dir: impl AsRef<Path>, options: &LoadOptions) -> Result<Self> {
        let dir = dir.as_ref();
        let config: DecoderConfig = store::read_config(dir, CLASS)?;
        config.validate().map_err(|e| Error::format(dir.join(store::CONFIG_FILE), e.to_string()))?;
        let (build, device, path) = (config.clone(), options.device.clone(), dir.join(store::WEIGHTS_FILE));
        let network = options.hold(move |reading| reading.own_module(build.init(&device)?, &path))?;
        Self::hold(config, network)
    }

    /// Reads the folders `decoder`, `text_proj` and `decoder_scheduler` of a diffusers unCLIP pipeline.
    ///
    /// # Errors
    /// When a file is missing or damaged, holds a setting that this library cannot express, or the tensors do not match
    /// the configuration.
    pub fn load_diffusers(root: impl AsRef<Path>, options: &LoadOptions) -> Result<Self> {
        let (config, files) = import::read_decoder(root.as_ref())?;
        let (build, device, root) = (config.clone(), options.device.clone(), root.as_ref().to_owned());
        let network = options.hold(move |reading| import::load_decoder(reading, build.init(&device)?, &root))?;
        Ok(Self { files: Some(files), ..Self::hold(config, network)? })
    }

    pub(crate) fn schedule(&self) -> &NoiseSchedule {
        &self.schedule
    }

    fn process(&self) -> Process<'_> {
        Process { config: &self.config.diffusion, schedule: &self.schedule }
    }

    /// Draws images from captions alone: in place of the image embedding, the network reads the learned one that stood for
    /// "no image" in training. What a pipeline without a prior would draw (DALL·E 2, section 5.1).
    ///
    /// # Errors
    /// As [`sample`](dalle2_core::Decoder::sample).
    pub fn sample_captions(
        &self,
        text: &TextCondition,
        null: &TextCondition,
        options: &SampleOptions,
        noise: &mut dyn NoiseSource,
        hook: StepHook<'_>,
    ) -> Result<Tensor<4>> {
        self.run(None, (text, null), Task::Draw { kept: None, noise }, options, hook)
    }

    fn check(&self, embedding: Option<&Tensor<2>>, text: &TextCondition, null: &TextCondition) -> Result<()> {
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
        match sum.is_none_or(f32::is_finite) {
            true => Ok(()),
            false => Err(Error::Input("an image embedding for the decoder holds a value that is not finite".into())),
        }
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
    /// Does the task under these conditions; from captions alone if there is no embedding.
    fn run(
        &self,
        embedding: Option<Tensor<2>>,
        (text, null): (&TextCondition, &TextCondition),
        task: Task<'_>,
        options: &SampleOptions,
        hook: StepHook<'_>,
    ) -> Result<Tensor<4>> {
        Decoder::validate(self, options)?;
        self.check(embedding.as_ref(), text, null)?;
        let network = self.network.get()?;
        let batch = text.batch_size();
        let guidance = options.guidance.unwrap_or(self.config.diffusion.guidance);
        let interval = options.guidance_interval.or(self.config.diffusion.guidance_interval);
        let interval = interval.filter(|_| guidance != 1.0);
        let conditioning = &network.conditioning;
        let scaled = embedding.map_or_else(|| conditioning.null(batch), |embedding| conditioning.scale(embedding));
        let cond = conditioning.forward(scaled, text);
        // Outside its interval guidance is off, and the conditional half is all that is computed.
        let unguided = interval.map(|interval| (interval, network.prepare(cond.clone())));
        let prepared = if guidance == 1.0 {
            network.prepare(cond)
        } else {
            let uncond = conditioning.forward(conditioning.null(batch), &null.repeat_interleave(batch));
            network.prepare(uncond.cat(cond))
        };
        let (size, device) = (self.config.image_size, prepared.time.device());
        let shape = [batch, 3, size, size];
        let kept = task.kept().map(|kept| Kept::new(kept, shape, self.config.inpainting)).transpose()?;
        let (config, process) = (&self.config, self.process());
        let learned = config.unet.out_channels == 6;
        let clip = config.diffusion.sampler_options(options).clip;
        let mut estimate = None;
        let denoise = |x_t: Tensor<4>, t: usize| {
            let input = config.input(x_t.clone(), estimate.take(), kept.as_ref().map(|kept| &kept.known));
            let unguided = unguided.as_ref().filter(|(at, _)| !at.contains(t, config.diffusion.train_steps));
            let output = on_pool(&device, || match (guidance, unguided) {
                (1.0, _) => split_variance(network.forward(input, &[t], &prepared), learned),
                (_, Some((_, cond))) => split_variance(network.forward(input, &[t], cond), learned),
                _ => {
                    let doubled = input.repeat_dim(0, 2); // [B, C, H, W] -> [2B, C, H, W]
                    split_variance(network.forward(doubled, &[t], &prepared), learned).guided(guidance)
                }
            });
            if config.self_conditioning {
                estimate = Some(output.x_start(&process, clip, x_t, t));
            }
            output
        };
        process.run((shape, &device), (task, kept.as_ref()), options, denoise, hook)
    }
}

impl Decoder for UnclipDecoder {
    fn sample(
        &self,
        embedding: Tensor<2>,
        text: &TextCondition,
        null: &TextCondition,
        options: &SampleOptions,
        noise: &mut dyn NoiseSource,
        hook: StepHook<'_>,
    ) -> Result<Tensor<4>> {
        self.run(Some(embedding), (text, null), Task::Draw { kept: None, noise }, options, hook)
    }

    fn inpaint(
        &self,
        embedding: Tensor<2>,
        (text, null): (&TextCondition, &TextCondition),
        inpainting: &Inpainting,
        options: &SampleOptions,
        noise: &mut dyn NoiseSource,
        hook: StepHook<'_>,
    ) -> Result<Tensor<4>> {
        self.run(Some(embedding), (text, null), Task::Draw { kept: Some(inpainting), noise }, options, hook)
    }

    fn invert(
        &self,
        images: Tensor<4>,
        embedding: Tensor<2>,
        texts: (&TextCondition, &TextCondition),
        options: &SampleOptions,
        evaluations: usize,
        hook: StepHook<'_>,
    ) -> Result<Tensor<4>> {
        self.run(Some(embedding), texts, Task::Invert { images, evaluations }, options, hook)
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

    fn defaults(&self) -> SampleOptions {
        self.config.diffusion.defaults()
    }

    fn validate(&self, options: &SampleOptions) -> Result<()> {
        if let Some(tiling) = options.tiling {
            let expected = "only an upsampler can be evaluated in tiles: a decoder's attention reads the whole image";
            return Err(ConfigError::new("tiling", format!("{tiling:?}"), expected).into());
        }
        self.process().validate(options)
    }
}
