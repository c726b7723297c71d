//! Upsamplers P(x_high | x_low): unconditional U-Nets that read the enlarged small image beside the noisy one
//! (DALL·E 2, section 2.1).

use std::collections::BTreeMap;
use std::path::Path;

use burn::prelude::*;
use dalle2_core::diffusers::IndexEntry;
use dalle2_core::diffusion::{Known, NoiseSchedule, NoiseSource, Resampling, draw};
use dalle2_core::image::resize_bicubic;
use dalle2_core::store;
use dalle2_core::{
    Component, ConfigError, DdimInversion, Error, FloatType, Inpainting, LoadOptions, Network, Result, StepHook,
    Upsampler, UpsamplerOptions, on_pool,
};

use crate::channels::known_channels;
use crate::import::{self, UpsamplerFiles};
use crate::sampling::{self, Batch, SamplingRun, Task, split_variance};
use crate::tiles::in_tiles;
use crate::unet::UNet;
use crate::{Enlargement, UpsamplerConfig};

/// Class name in the configuration file.
const CLASS: &str = "Dalle2Upsampler";
/// Weights file of the network of the last step.
const LAST_STEP_FILE: &str = "last_step.safetensors";

impl UpsamplerConfig {
    /// Builds the network of a [valid](Self::validate) configuration with fresh weights.
    pub fn init(&self, device: &Device) -> UNet {
        self.unet.init(device)
    }

    /// Builds the network of the last step with fresh weights, if the configuration has one.
    pub fn init_last_step(&self, device: &Device) -> Option<UNet> {
        self.last_step.as_ref().map(|unet| unet.init(device))
    }

    /// Concatenates the input channels: the noisy images, the enlarged small ones with the level of their noise, and the known
    /// pixels if the network has channels for them.
    ///
    /// # Shapes
    /// - x_t: `[B, 3, H, W]`
    /// - low: `[B, 3 or 4, H, W]`
    /// - result: `[B, in_channels, H, W]`
    pub(crate) fn input(&self, x_t: Tensor<4>, low: Tensor<4>, known: Option<&Known<4>>) -> Tensor<4> {
        let known = self.inpainting.then(|| known_channels(known, &x_t));
        Tensor::cat([x_t, low].into_iter().chain(known).collect(), 1)
    }

    /// Converts the network's output to the prediction: with [`residual`](Self::residual), adds the enlarged images to its
    /// first three channels.
    ///
    /// # Shapes
    /// - out: `[B, 3 or 6, H, W]`, low: `[B, 3 or 4, H, W]`
    /// - result: as `out`
    pub(crate) fn prediction(&self, out: Tensor<4>, low: Tensor<4>) -> Tensor<4> {
        if !self.residual {
            return out;
        }
        let low = low.slice_dim(1, 0..3);
        match out.dims()[1] {
            3 => out + low,
            channels => {
                let image = out.clone().slice_dim(1, 0..3) + low;
                Tensor::cat(vec![image, out.slice_dim(1, 3..channels)], 1)
            }
        }
    }
}

/// The networks of an upsampler.
#[derive(Module, Debug)]
pub struct UpsamplerNetworks {
    /// Takes every step, or every step but the last.
    pub first: UNet,
    /// Takes the last step, if there is one for it.
    pub last: Option<UNet>,
}

/// An upsampler that can be sampled.
#[derive(Debug, Clone)]
pub struct DiffusionUpsampler {
    config: UpsamplerConfig,
    networks: Network<UpsamplerNetworks>,
    schedule: NoiseSchedule,
    /// The configuration files of diffusers that it was loaded from, to be written back unchanged.
    files: Option<UpsamplerFiles>,
}

impl DiffusionUpsampler {
    /// Class name in configuration files.
    pub const CLASS: &'static str = CLASS;

    /// Creates an upsampler from a network and its configuration.
    ///
    /// # Errors
    /// If the configuration is invalid, or has a network for the last step: see [`Self::with_last_step`].
    pub fn new(config: UpsamplerConfig, network: UNet) -> Result<Self> {
        if config.last_step.is_some() {
            let expected = "must be unset here: pass both networks to DiffusionUpsampler::with_last_step";
            return Err(ConfigError::new("last_step", "set", expected).into());
        }
        Self::from_networks(config, UpsamplerNetworks { first: network, last: None }.valid().into())
    }

    /// As [`Self::new`], with a second network for the last step, which the configuration describes.
    ///
    /// # Errors
    /// If the configuration is invalid or has no network for the last step.
    pub fn with_last_step(config: UpsamplerConfig, network: UNet, last: UNet) -> Result<Self> {
        if config.last_step.is_none() {
            return Err(ConfigError::new(
                "last_step",
                "null",
                "must be the configuration of the network of the last step",
            )
            .into());
        }
        Self::from_networks(config, UpsamplerNetworks { first: network, last: Some(last) }.valid().into())
    }

    fn from_networks(config: UpsamplerConfig, networks: Network<UpsamplerNetworks>) -> Result<Self> {
        config.validate()?;
        let schedule = config.diffusion.noise_schedule()?;
        Ok(Self { config, networks, schedule, files: None })
    }

    /// The configuration.
    pub fn config(&self) -> &UpsamplerConfig {
        &self.config
    }

    /// The networks, loaded from disk if they are not resident.
    ///
    /// # Errors
    /// If reading fails.
    pub fn networks(&self) -> Result<UpsamplerNetworks> {
        self.networks.get()
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
        let dir = dir.as_ref().to_owned();
        let config: UpsamplerConfig = store::read_config(&dir, CLASS)?;
        config.validate().map_err(|e| Error::format(dir.join(store::CONFIG_FILE), e.to_string()))?;
        let (build, device) = (config.clone(), options.device.clone());
        let networks = options.hold(move |reading| {
            let first = reading.own_module(build.init(&device), dir.join(store::WEIGHTS_FILE))?;
            let last = build.init_last_step(&device);
            let last = last.map(|last| reading.own_module(last, dir.join(LAST_STEP_FILE))).transpose()?;
            Ok(UpsamplerNetworks { first, last })
        })?;
        Self::from_networks(config, networks)
    }

    /// Reads the folders `super_res_first`, `super_res_last` and `super_res_scheduler` of a diffusers unCLIP pipeline,
    /// and the size of the images to be enlarged from `decoder/config.json`.
    ///
    /// # Errors
    /// If a file is missing or damaged, holds a setting that this library cannot express, or the tensors do not match
    /// the configuration.
    pub fn load_diffusers(root: impl AsRef<Path>, options: &LoadOptions) -> Result<Self> {
        let (config, files) = import::read_upsampler(root.as_ref())?;
        let (build, device, root) = (config.clone(), options.device.clone(), root.as_ref().to_owned());
        let networks = options.hold(move |reading| {
            let (first, last) = (build.init(&device), build.init_last_step(&device));
            import::load_upsampler(reading, UpsamplerNetworks { first, last }, &root)
        })?;
        Ok(Self { files: Some(files), ..Self::from_networks(config, networks)? })
    }
}

/// Enlarges the small images to the size the network works at.
///
/// # Shapes
/// `[B, 3, h, w]` -> `[B, 3, h * factor, w * factor]`
pub(crate) fn enlarge(low: Tensor<4>, config: &UpsamplerConfig) -> Tensor<4> {
    let [_, _, h, w] = low.dims();
    let high = resize_bicubic(low.clamp(-1.0, 1.0), [h * config.factor, w * config.factor]);
    match config.enlargement.unwrap_or_default() {
        Enlargement::Clamped => high.clamp(-1.0, 1.0),
        Enlargement::Overshooting => high,
    }
}

impl Component for DiffusionUpsampler {
    fn class_name(&self) -> &str {
        CLASS
    }

    fn save(&self, dir: &Path, float_type: FloatType) -> Result<()> {
        store::write_config(dir, CLASS, &self.config)?;
        let UpsamplerNetworks { first, last } = self.networks.get()?;
        store::save_module(&first, dir.join(store::WEIGHTS_FILE), float_type, &BTreeMap::new())?;
        match last {
            Some(last) => store::save_module(&last, dir.join(LAST_STEP_FILE), float_type, &BTreeMap::new()),
            None => Ok(()),
        }
    }

    fn diffusers_faults(&self) -> Vec<String> {
        import::upsampler_faults(&self.config)
    }

    fn save_diffusers(&self, root: &Path, float_type: FloatType) -> Result<Vec<IndexEntry>> {
        let files = self.files.clone().unwrap_or_else(|| import::upsampler_files(&self.config));
        import::save_upsampler(&self.networks.get()?, &files, root, float_type)
    }
}

impl DiffusionUpsampler {
    /// Runs a task for these small images.
    fn run(
        &self,
        low: &Tensor<4>,
        mut task: Task<'_>,
        options: &UpsamplerOptions,
        hook: StepHook<'_>,
    ) -> Result<Tensor<4>> {
        let run = self.sampling_run(options)?;
        let (shape, device) = (self.output_shape(low)?, low.device());
        let UpsamplerNetworks { first, last } = self.networks.get()?;
        let last_t = run.plan.timesteps().last().copied();
        let known = task.known_pixels(shape, self.config.inpainting)?;
        let low = self.enlarged(low, &mut task, shape)?;
        let learned = self.config.unet.out_channels == 6;
        let denoise = |x_t: Tensor<4>, t: usize| {
            let network = last.as_ref().filter(|_| Some(t) == last_t).unwrap_or(&first);
            let emb = network.time_embedding(&[t], &device);
            let emb = emb.clone().expand([shape[0], emb.dims()[1]]);
            let input = self.config.input(x_t, low.clone(), known.as_ref().map(|pixels| &pixels.known));
            let out = on_pool(&device, || match options.tiling {
                Some(tiling) => in_tiles(&input, tiling, |tile| network.forward(tile, emb.clone(), None)),
                None => network.forward(input, emb, None),
            });
            split_variance(self.config.prediction(out, low.clone()), learned)
        };
        run.run(task, &Batch { shape, device: &device, known: known.as_ref() }, denoise, hook)
    }

    /// The shape of the result for small images.
    fn output_shape(&self, low: &Tensor<4>) -> Result<[usize; 4]> {
        let [b, c, h, w] = low.dims();
        let (factor, stride) = (self.config.factor, self.config.stride());
        if c != 3 || h == 0 || w == 0 || h * factor % stride != 0 || w * factor % stride != 0 {
            return Err(Error::Input(format!(
                "cannot enlarge a [{b}, {c}, {h}, {w}] batch: expected 3 channels and sides that, times {factor}, are \
                 multiples of {stride}"
            )));
        }
        Ok([b, 3, h * factor, w * factor])
    }

    /// The enlarged small images, with noise of the configured level.
    fn enlarged(&self, low: &Tensor<4>, task: &mut Task<'_>, shape: [usize; 4]) -> Result<Tensor<4>> {
        let high = enlarge(low.clone(), &self.config);
        match (&self.config.noise_level, task) {
            (None, _) => Ok(high),
            (Some(level), Task::Sample { noise, .. }) => {
                let noise = draw(&mut **noise, shape, &low.device())?;
                Ok(level.channels(high, noise, &vec![level.sampling; shape[0]]))
            }
            (Some(_), Task::Invert { .. }) => {
                Err(Error::Mismatch("an upsampler with noise augmentation of its input cannot invert images".into()))
            }
        }
    }

    fn sampling_run(&self, options: &UpsamplerOptions) -> Result<SamplingRun<'_>> {
        options.tiling.map_or(Ok(()), |tiling| tiling.validate(self.config.stride()))?;
        SamplingRun::new(&self.config.diffusion, &self.schedule, &options.diffusion())
    }
}

impl Upsampler for DiffusionUpsampler {
    fn sample(
        &self,
        low: &Tensor<4>,
        keep: Option<&Inpainting>,
        options: &UpsamplerOptions,
        noise: &mut dyn NoiseSource,
        hook: StepHook<'_>,
    ) -> Result<Tensor<4>> {
        self.run(low, Task::Sample { keep, noise }, options, hook)
    }

    fn invert(
        &self,
        images: &Tensor<4>,
        low: &Tensor<4>,
        options: &DdimInversion<UpsamplerOptions>,
        hook: StepHook<'_>,
    ) -> Result<Tensor<4>> {
        let task = Task::Invert { images, evaluations: options.evaluations };
        self.run(low, task, &options.sampling, hook)
    }

    fn input_size(&self) -> usize {
        self.config.input_size
    }

    fn factor(&self) -> usize {
        self.config.factor
    }

    fn defaults(&self) -> UpsamplerOptions {
        self.config.diffusion.defaults().into()
    }

    fn num_steps(&self, options: &UpsamplerOptions, resampling: Option<Resampling>) -> Result<usize> {
        let resampling = resampling.map(|requested| sampling::resampling(requested, self.config.inpainting));
        Ok(self.sampling_run(options)?.num_steps(resampling))
    }
}
