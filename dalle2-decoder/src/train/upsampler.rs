//! Training of the upsamplers.

use burn::prelude::*;
use dalle2_core::diffusion::{Known, NoiseSchedule, standard_normal};
use dalle2_core::image::{gaussian_blur, resize_area};
use dalle2_core::train::{StepOutput, TrainTask};
use dalle2_core::{ConfigError, Result};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::{masked, noised, output, rng};
use crate::degradation::{BsrOptions, bsr, image_to_planes, planes_to_image};
use crate::unet::UNet;
use crate::upsampler::enlarge;
use crate::{DiffusionLoss, Noised, UpsamplerConfig};

/// What is done to the small images in training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LowDegradation {
    /// Nothing.
    None,
    /// A Gaussian blur of 3 × 3 taps, as for the paper's first upsampler.
    Blur {
        /// Probability that an image is blurred.
        probability: f64,
        /// Standard deviation in pixels of the small image.
        sigma: f64,
    },
    /// BSR degradation, as for the paper's second upsampler.
    Bsr(BsrOptions),
}

/// Augmentation in the training of an upsampler (DALL·E 2, section 2.1 and Table 3).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CropOptions {
    /// Side of the random crops as a fraction of the large image's side.
    pub fraction: f64,
    /// What is done to the small images.
    pub degradation: LowDegradation,
}

impl Default for CropOptions {
    fn default() -> Self {
        Self { fraction: 0.25, degradation: LowDegradation::Blur { probability: 0.5, sigma: 0.6 } }
    }
}

/// One batch for [`UpsamplerTask`].
#[derive(Debug, Clone)]
pub struct UpsamplerBatch {
    /// Crops of the large images with their timesteps and noise.
    pub images: Noised,
    /// The same crops of the enlarged small images, `[B, 3, H, W]`, with the level of their noise behind them where the
    /// network is told it.
    pub low: Tensor<4>,
    /// The pixels that a network which inpaints is given.
    pub known: Option<Known<4>>,
}

impl UpsamplerBatch {
    /// Draws crops, makes small images of them by averaging, degrades these, and draws timesteps and noise, all from `seed`.
    ///
    /// # Shapes
    /// `images: [B, 3, H, W]` in [−1, 1], the large ones
    ///
    /// # Errors
    /// When the images are not of the configuration's output size, the crop does not fit the network's stride, or the
    /// degradation is out of range.
    pub fn draw(seed: u64, images: Tensor<4>, options: CropOptions, config: &UpsamplerConfig) -> Result<Self> {
        let [b, _, h, w] = images.dims();
        let size = config.output_size();
        if [h, w] != [size, size] {
            let expected = format!("this upsampler trains on images of {size} x {size} pixels");
            return Err(ConfigError::new("image size", format!("{h} x {w}"), expected).into());
        }
        let crop = options.side(config)?;
        let mut rng = rng(seed);
        let mut crops = Vec::with_capacity(b);
        for i in 0..b {
            let [y, x] = [0; 2].map(|_: usize| rng.random_range(0..=(size - crop) / config.factor) * config.factor);
            let image = images.clone().slice_dim(0, i..i + 1);
            crops.push(image.slice_dim(2, y..y + crop).slice_dim(3, x..x + crop));
        }
        Self::of_crops(&mut rng, Tensor::cat(crops, 0), options.degradation, config)
    }

    /// As [`Self::draw`], of images that are crops already: of any size that fits the stride and the factor.
    ///
    /// # Shapes
    /// `crops: [B, 3, H, W]` in [−1, 1]
    ///
    /// # Errors
    /// When the sides do not fit, or the degradation is out of range.
    pub fn draw_from_crops(
        seed: u64,
        crops: Tensor<4>,
        degradation: LowDegradation,
        config: &UpsamplerConfig,
    ) -> Result<Self> {
        let [_, _, h, w] = crops.dims();
        let unit = config.unet.stride().max(config.factor);
        if h == 0 || w == 0 || h % unit != 0 || w % unit != 0 {
            let expected = format!("sides must be multiples of {unit}");
            return Err(ConfigError::new("crop size", format!("{h} x {w}"), expected).into());
        }
        Self::of_crops(&mut rng(seed), crops, degradation, config)
    }

    fn of_crops(
        rng: &mut ChaCha8Rng,
        crops: Tensor<4>,
        degradation: LowDegradation,
        config: &UpsamplerConfig,
    ) -> Result<Self> {
        let b = crops.dims()[0];
        let low = degradation.degrade(crops.clone(), config.factor, rng)?;
        let mut low = enlarge(low, config);
        let images = noised(rng, crops, config.diffusion.train_steps);
        if let Some(level) = &config.noise_level {
            let sigmas: Vec<f64> = (0..b).map(|_| rng.random_range(0.0..=level.train_max)).collect();
            let shape = low.dims();
            let values = standard_normal(rng, shape.iter().product());
            let noise = Tensor::from_data(TensorData::new(values, shape), &low.device());
            low = level.channels(low, noise, &sigmas);
        }
        Ok(Self { images, low, known: None })
    }

    /// The same batch with known pixels outside of random masks, drawn from `seed`.
    pub fn with_masks(mut self, seed: u64) -> Self {
        self.known = Some(masked(seed, &self.images.x_start));
        self
    }
}

impl CropOptions {
    /// Side of the crops in pixels: the fraction rounded down to what the network and the factor can take.
    ///
    /// # Errors
    /// When that is nothing, or more than the image.
    pub fn side(&self, config: &UpsamplerConfig) -> Result<usize, ConfigError> {
        let size = config.output_size();
        let unit = config.unet.stride().max(config.factor);
        let crop = (size as f64 * self.fraction).round() as usize / unit * unit;
        match (1..=size).contains(&crop) {
            true => Ok(crop),
            false => {
                let expected = format!("a crop must have between {unit} and {size} pixels");
                Err(ConfigError::new("crop fraction", self.fraction, expected))
            }
        }
    }
}

impl LowDegradation {
    /// Small images of large ones.
    ///
    /// # Shapes
    /// `[B, 3, H, W]` -> `[B, 3, H / factor, W / factor]`
    fn degrade(self, images: Tensor<4>, factor: usize, rng: &mut ChaCha8Rng) -> Result<Tensor<4>> {
        let items = (0..images.dims()[0]).map(|i| images.clone().slice_dim(0, i..i + 1));
        let small: Vec<Tensor<4>> = match self {
            Self::None => return Ok(resize_area(images, factor)),
            Self::Blur { probability, sigma } => items
                .map(|image| match rng.random_bool(probability) {
                    true => gaussian_blur(resize_area(image, factor), 3, sigma),
                    false => resize_area(image, factor),
                })
                .collect(),
            Self::Bsr(options) => items
                .map(|image| {
                    let device = image.device();
                    let small = bsr(planes_to_image(image)?, factor, &options, rng)?;
                    Ok(image_to_planes(&small, &device))
                })
                .collect::<Result<_>>()?,
        };
        Ok(Tensor::cat(small, 0))
    }
}

/// The upsampler's network with what its loss needs.
#[derive(Module, Debug)]
pub struct UpsamplerTask {
    /// The network that is trained.
    pub network: UNet,
    #[module(skip)]
    config: UpsamplerConfig,
    #[module(skip)]
    schedule: NoiseSchedule,
}

impl UpsamplerTask {
    /// A network with fresh weights on `device`.
    ///
    /// # Errors
    /// When the configuration is not valid.
    pub fn new(config: &UpsamplerConfig, device: &Device) -> Result<Self> {
        config.validate()?;
        Ok(Self { network: config.init(device), config: config.clone(), schedule: config.diffusion.noise_schedule()? })
    }

    /// A task that goes on with a trained network, as [`DecoderTask::with_network`](super::DecoderTask::with_network).
    ///
    /// # Errors
    /// When the configuration is not valid.
    pub fn with_network(config: &UpsamplerConfig, network: UNet) -> Result<Self> {
        config.validate()?;
        let network = network.with_input_channels(config.unet.in_channels);
        Ok(Self { network, config: config.clone(), schedule: config.diffusion.noise_schedule()? })
    }

    /// The configuration.
    pub fn config(&self) -> &UpsamplerConfig {
        &self.config
    }

    /// The loss of a batch.
    pub fn loss_terms(&self, batch: UpsamplerBatch) -> DiffusionLoss {
        let x_t = batch.images.x_t(&self.schedule);
        let emb = self.network.time_embedding(&batch.images.t, &x_t.device());
        let input = self.config.input(x_t, batch.low.clone(), batch.known.as_ref());
        let out = self.config.prediction(self.network.forward(input, emb, None), batch.low);
        batch.images.loss(out, &self.config.diffusion, &self.schedule)
    }
}

impl TrainTask for UpsamplerTask {
    type Batch = UpsamplerBatch;

    fn loss(&self, batch: UpsamplerBatch) -> StepOutput {
        output(self.loss_terms(batch))
    }
}
