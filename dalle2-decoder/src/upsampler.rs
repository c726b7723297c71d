//! Upsamplers P(x_high | x_low): unconditional U-Nets that read the enlarged small image beside the noisy one
//! (DALL·E 2, section 2.1).

use std::collections::BTreeMap;
use std::path::Path;

use burn::prelude::*;
use dalle2_core::diffusion::{NoiseSchedule, NoiseSource};
use dalle2_core::image::resize_bicubic;
use dalle2_core::store::{self, Precision};
use dalle2_core::{Component, ConfigError, Error, Result, SampleOptions, StepHook};

use crate::UpsamplerConfig;
use crate::sampling::{Output, Process, split_variance};
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

    fn process(&self) -> Process<'_> {
        Process { config: &self.config.diffusion, schedule: &self.schedule }
    }

    /// The network beside these small images.
    fn denoiser(
        &self,
        images: Tensor<4>,
        options: &SampleOptions,
    ) -> Result<impl FnMut(Tensor<4>, usize) -> Output + '_> {
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
        let device = images.device();
        let low = enlarge(images, factor);
        Ok(move |x_t: Tensor<4>, t: usize| {
            let emb = self.network.time_embedding(&[t], &device);
            let emb = emb.clone().expand([b, emb.dims()[1]]);
            let input = Tensor::cat(vec![x_t, low.clone()], 1); // [B, 6, H, W]
            split_variance(self.network.forward(input, emb, None), self.config.unet.out_channels == 6)
        })
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

impl dalle2_core::Upsampler for DiffusionUpsampler {
    fn sample(
        &self,
        images: Tensor<4>,
        options: &SampleOptions,
        noise: &mut dyn NoiseSource,
        hook: StepHook<'_>,
    ) -> Result<Tensor<4>> {
        let ([b, _, h, w], factor, device) = (images.dims(), self.config.factor, images.device());
        let denoise = self.denoiser(images, options)?;
        self.process().sample([b, 3, h * factor, w * factor], options, denoise, noise, hook, &device)
    }

    fn invert(
        &self,
        images: Tensor<4>,
        low: Tensor<4>,
        options: &SampleOptions,
        evaluations: usize,
        hook: StepHook<'_>,
    ) -> Result<Tensor<4>> {
        let ([b, _, h, w], factor) = (low.dims(), self.config.factor);
        if images.dims() != [b, 3, h * factor, w * factor] {
            return Err(Error::Input(format!(
                "images of shape {:?} cannot have come from {:?} enlarged by {factor}",
                images.dims(),
                low.dims()
            )));
        }
        let denoise = self.denoiser(low, options)?;
        self.process().invert(images, options, evaluations, denoise, hook)
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
        self.process().validate(options)
    }
}
