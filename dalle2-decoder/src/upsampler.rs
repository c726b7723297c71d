//! Upsamplers P(x_high | x_low): unconditional U-Nets that read the enlarged small image beside the noisy one
//! (DALL·E 2, section 2.1).

use std::collections::BTreeMap;
use std::path::Path;

use burn::prelude::*;
use dalle2_core::diffusion::{Known, NoiseSchedule, NoiseSource, draw};
use dalle2_core::image::resize_bicubic;
use dalle2_core::store::{self, Precision};
use dalle2_core::{Component, ConfigError, Error, Inpainting, Result, SampleOptions, StepHook};

use crate::UpsamplerConfig;
use crate::channels::known_channels;
use crate::sampling::{Kept, Process, split_variance};
use crate::tiles::in_tiles;
use crate::unet::UNet;

/// Class name in the configuration file.
const CLASS: &str = "Dalle2Upsampler";

impl UpsamplerConfig {
    /// Builds the network with fresh weights.
    ///
    /// # Errors
    /// When the configuration is not valid.
    pub fn init(&self, device: &Device) -> Result<UNet, ConfigError> {
        self.validate()?;
        Ok(self.unet.init(device))
    }

    /// What the network reads: the noisy images, the enlarged small ones (and the level of their noise, behind them), and
    /// the known pixels where it has channels for them.
    ///
    /// # Shapes
    /// - x_t: `[B, 3, H, W]`
    /// - low: `[B, 3 or 4, H, W]`
    /// - result: `[B, in_channels, H, W]`
    pub(crate) fn input(&self, x_t: Tensor<4>, low: Tensor<4>, known: Option<&Known<4>>) -> Tensor<4> {
        let known = self.inpainting.then(|| known_channels(known, &x_t));
        Tensor::cat([x_t, low].into_iter().chain(known).collect(), 1)
    }
}

/// An upsampler that can be sampled.
#[derive(Debug, Clone)]
pub struct DiffusionUpsampler {
    config: UpsamplerConfig,
    network: UNet,
    schedule: NoiseSchedule,
}

impl DiffusionUpsampler {
    /// Class name in configuration files.
    pub const CLASS: &'static str = CLASS;

    /// Puts a network and its configuration together.
    ///
    /// # Errors
    /// When the configuration is not valid.
    pub fn new(config: UpsamplerConfig, network: UNet) -> Result<Self> {
        config.validate()?;
        let schedule = config.diffusion.noise_schedule()?;
        Ok(Self { config, network: network.valid(), schedule })
    }

    /// The configuration.
    pub fn config(&self) -> &UpsamplerConfig {
        &self.config
    }

    /// The network, for example to go on training it.
    pub fn network(&self) -> &UNet {
        &self.network
    }

    /// Reads what [`save`](dalle2_core::Component::save) wrote.
    ///
    /// # Errors
    /// When a file is missing or damaged, the configuration is not valid, or the tensors do not match it.
    pub fn load(dir: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let dir = dir.as_ref();
        let config: UpsamplerConfig = store::read_config(dir, CLASS)?;
        let network = config.init(device).map_err(|e| Error::format(dir.join(store::CONFIG_FILE), e.to_string()))?;
        Self::new(config, store::load_module(network, dir.join(store::WEIGHTS_FILE))?)
    }

    fn check_tiling(&self, options: &SampleOptions) -> Result<()> {
        Ok(options.tiling.map_or(Ok(()), |tiling| tiling.validate(self.config.unet.stride()))?)
    }

    fn process(&self) -> Process<'_> {
        Process { config: &self.config.diffusion, schedule: &self.schedule }
    }
}

/// Enlarges the small images to the size the network works at.
///
/// # Shapes
/// `[B, 3, h, w]` -> `[B, 3, h * factor, w * factor]`
pub(crate) fn enlarge(low: Tensor<4>, factor: usize) -> Tensor<4> {
    let [_, _, h, w] = low.dims();
    resize_bicubic(low.clamp(-1.0, 1.0), [h * factor, w * factor]).clamp(-1.0, 1.0)
}

impl Component for DiffusionUpsampler {
    fn class_name(&self) -> &str {
        CLASS
    }

    fn save(&self, dir: &Path, precision: Precision) -> Result<()> {
        store::write_config(dir, CLASS, &self.config)?;
        store::save_module(&self.network, dir.join(store::WEIGHTS_FILE), precision, &BTreeMap::new())
    }
}

impl DiffusionUpsampler {
    /// Draws large images, around the kept part of others if there are any.
    fn draw(
        &self,
        images: Tensor<4>,
        kept: Option<&Inpainting>,
        options: &SampleOptions,
        noise: &mut dyn NoiseSource,
        hook: StepHook<'_>,
    ) -> Result<Tensor<4>> {
        let [b, c, h, w] = images.dims();
        let (factor, stride) = (self.config.factor, self.config.unet.stride());
        let (high_h, high_w) = (h * factor, w * factor);
        if c != 3 || h == 0 || w == 0 || high_h % stride != 0 || high_w % stride != 0 {
            return Err(Error::Input(format!(
                "cannot enlarge a [{b}, {c}, {h}, {w}] batch: it must have 3 channels and sides whose {factor}-fold is a \
                 multiple of {stride}"
            )));
        }
        if options.guidance.is_some_and(|g| g != 1.0) {
            let expected = "an upsampler has no condition to guide by: leave it out or give 1";
            return Err(ConfigError::new("guidance", options.guidance.unwrap_or_default(), expected).into());
        }
        self.check_tiling(options)?;
        let device = images.device();
        let shape = [b, 3, high_h, high_w];
        let kept = kept.map(|kept| Kept::new(kept, shape, self.config.inpainting)).transpose()?;
        let mut low = enlarge(images, factor);
        if let Some(level) = &self.config.noise_level {
            low = level.channels(low, draw(noise, shape, &device)?, &vec![level.sampling; b]);
        }
        let learned = self.config.unet.out_channels == 6;
        let denoise = |x_t: Tensor<4>, t: usize| {
            let emb = self.network.time_embedding(&[t], &device);
            let emb = emb.clone().expand([b, emb.dims()[1]]);
            let input = self.config.input(x_t, low.clone(), kept.as_ref().map(|kept| &kept.known));
            let out = match options.tiling {
                Some(tiling) => in_tiles(&input, tiling, |tile| self.network.forward(tile, emb.clone(), None)),
                None => self.network.forward(input, emb, None),
            };
            split_variance(out, learned)
        };
        self.process().sample((shape, &device), kept.as_ref(), options, denoise, noise, hook)
    }
}

impl dalle2_core::Upsampler for DiffusionUpsampler {
    fn sample(
        &self,
        images: Tensor<4>,
        options: &SampleOptions,
        noise: &mut dyn NoiseSource,
        hook: StepHook<'_>,
    ) -> Result<Tensor<4>> {
        self.draw(images, None, options, noise, hook)
    }

    fn inpaint(
        &self,
        images: Tensor<4>,
        inpainting: &Inpainting,
        options: &SampleOptions,
        noise: &mut dyn NoiseSource,
        hook: StepHook<'_>,
    ) -> Result<Tensor<4>> {
        self.draw(images, Some(inpainting), options, noise, hook)
    }

    fn input_size(&self) -> usize {
        self.config.input_size
    }

    fn factor(&self) -> usize {
        self.config.factor
    }

    fn defaults(&self) -> SampleOptions {
        self.config.diffusion.defaults()
    }

    fn validate(&self, options: &SampleOptions) -> Result<()> {
        self.check_tiling(options)?;
        self.process().validate(options)
    }
}
