//! Training of the upsamplers.

use burn::prelude::*;
use burn::train::{TrainOutput, TrainStep};
use dalle2_core::diffusion::NoiseSchedule;
use dalle2_core::image::{gaussian_blur, resize_area};
use dalle2_core::train::StepOutput;
use dalle2_core::{ConfigError, Result};
use rand::RngExt;

use super::{noised, output, rng};
use crate::unet::UNet;
use crate::upsampler::enlarge;
use crate::{DiffusionLoss, Noised, UpsamplerConfig};

/// Augmentation in the training of an upsampler (DALL·E 2, section 2.1 and Table 3).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CropOptions {
    /// Side of the random crops as a fraction of the large image's side.
    pub fraction: f64,
    /// Probability that the small image is blurred.
    pub blur_probability: f64,
    /// Standard deviation of the blur in pixels of the small image; the kernel has 3 × 3 taps.
    pub blur_sigma: f64,
}

impl Default for CropOptions {
    fn default() -> Self {
        Self { fraction: 0.25, blur_probability: 0.5, blur_sigma: 0.6 }
    }
}

/// One batch for [`UpsamplerTask`].
#[derive(Debug, Clone)]
pub struct UpsamplerBatch {
    /// Crops of the large images with their timesteps and noise.
    pub images: Noised,
    /// The same crops of the enlarged small images, `[B, 3, H, W]`.
    pub low: Tensor<4>,
}

impl UpsamplerBatch {
    /// Makes small images by averaging, blurs some, and draws crops, timesteps and noise from `seed`.
    ///
    /// # Shapes
    /// `images: [B, 3, H, W]` in [−1, 1], the large ones
    ///
    /// # Errors
    /// When the images are not of the configuration's output size, or the crop does not fit the network's stride.
    pub fn draw(seed: u64, images: Tensor<4>, options: CropOptions, config: &UpsamplerConfig) -> Result<Self> {
        let [b, _, h, w] = images.dims();
        let (size, factor) = (config.output_size(), config.factor);
        if [h, w] != [size, size] {
            let expected = format!("this upsampler trains on images of {size} x {size} pixels");
            return Err(ConfigError::new("image size", format!("{h} x {w}"), expected).into());
        }
        let unit = config.unet.stride().max(factor);
        let crop = (size as f64 * options.fraction).round() as usize / unit * unit;
        if crop == 0 || crop > size {
            let expected = format!("a crop must have between {unit} and {size} pixels");
            return Err(ConfigError::new("crop fraction", options.fraction, expected).into());
        }
        let mut rng = rng(seed);
        let low = resize_area(images.clone(), factor);
        let mut high_crops = Vec::with_capacity(b);
        let mut low_crops = Vec::with_capacity(b);
        for i in 0..b {
            let mut small = low.clone().slice_dim(0, i..i + 1);
            if rng.random_bool(options.blur_probability) {
                small = gaussian_blur(small, 3, options.blur_sigma);
            }
            let [y, x] = [0; 2].map(|_: usize| rng.random_range(0..=(size - crop) / factor) * factor);
            let cut = |image: Tensor<4>| image.slice_dim(2, y..y + crop).slice_dim(3, x..x + crop);
            high_crops.push(cut(images.clone().slice_dim(0, i..i + 1)));
            low_crops.push(cut(enlarge(small, config)));
        }
        let images = noised(&mut rng, Tensor::cat(high_crops, 0), config.diffusion.train_steps);
        Ok(Self { images, low: Tensor::cat(low_crops, 0) })
    }
}

/// The upsampler's network with what its loss needs; implements Burn's [`TrainStep`].
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
        Ok(Self { network: config.init(device)?, config: config.clone(), schedule: config.diffusion.noise_schedule()? })
    }

    /// The configuration.
    pub fn config(&self) -> &UpsamplerConfig {
        &self.config
    }

    /// The loss of a batch.
    pub fn loss(&self, batch: UpsamplerBatch) -> DiffusionLoss {
        let x_t = batch.images.x_t(&self.schedule);
        let emb = self.network.time_embedding(&batch.images.t, &x_t.device());
        let out = self.network.forward(Tensor::cat(vec![x_t, batch.low], 1), emb, None);
        batch.images.loss(out, &self.config.diffusion, &self.schedule)
    }
}

impl TrainStep for UpsamplerTask {
    type Input = UpsamplerBatch;
    type Output = StepOutput;

    fn step(&self, batch: UpsamplerBatch) -> TrainOutput<StepOutput> {
        let loss = self.loss(batch);
        let output = output(&loss);
        TrainOutput::new(self, loss.total.backward(), output)
    }
}
