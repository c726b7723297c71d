//! Training of the decoder.

use burn::prelude::*;
use dalle2_core::diffusion::{Known, NoiseSchedule};
use dalle2_core::train::{StepOutput, TrainTask};
use dalle2_core::{Result, TextCondition};
use rand::RngExt;

use super::{masked, noised, output, rng};
use crate::{DecoderConfig, DecoderNetwork, DiffusionLoss, Noised};

/// How often the conditions are dropped, which makes guidance possible (DALL·E 2, section 2.1).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ConditionDropout {
    /// Probability that the image embedding becomes the learned null embedding.
    pub image: f64,
    /// Probability that the caption becomes the empty one.
    pub text: f64,
}

impl Default for ConditionDropout {
    fn default() -> Self {
        Self { image: 0.1, text: 0.5 }
    }
}

/// One batch for [`DecoderTask`].
#[derive(Debug, Clone)]
pub struct DecoderBatch {
    /// Images with their timesteps and noise.
    pub images: Noised,
    /// CLIP image embeddings `[B, D]`.
    pub embedding: Tensor<2>,
    /// The captions, already replaced by the empty one where dropped.
    pub text: TextCondition,
    /// `[B]`, true where the image embedding is dropped.
    pub drop_image: Vec<bool>,
    /// Whether a network with self-conditioning makes a first estimate that it then reads; half of the batches do.
    pub estimate_first: bool,
    /// The pixels that a network which inpaints is given.
    pub known: Option<Known<4>>,
}

impl DecoderBatch {
    /// Draws timesteps, noise and dropped conditions from `seed`.
    ///
    /// # Shapes
    /// `images: [B, 3, H, W]` in [−1, 1], `embedding: [B, D]`, `text` of batch B, `null`: the empty caption, batch 1
    pub fn draw(
        seed: u64,
        images: Tensor<4>,
        embedding: Tensor<2>,
        text: &TextCondition,
        null: &TextCondition,
        dropout: ConditionDropout,
        train_steps: usize,
    ) -> Self {
        let mut rng = rng(seed);
        let b = images.dims()[0];
        let images = noised(&mut rng, images, train_steps);
        let drop_image = (0..b).map(|_| rng.random_bool(dropout.image)).collect();
        let drop_text: Vec<bool> = (0..b).map(|_| rng.random_bool(dropout.text)).collect();
        let estimate_first = rng.random_bool(0.5);
        let text = text.replace_rows(null, &drop_text);
        Self { images, embedding, text, drop_image, estimate_first, known: None }
    }

    /// The same batch with known pixels outside of random masks, drawn from `seed`.
    pub fn with_masks(mut self, seed: u64) -> Self {
        self.known = Some(masked(seed, &self.images.x_start));
        self
    }
}

/// The decoder's network with what its loss needs.
#[derive(Module, Debug)]
pub struct DecoderTask {
    /// The network that is trained.
    pub network: DecoderNetwork,
    #[module(skip)]
    config: DecoderConfig,
    #[module(skip)]
    schedule: NoiseSchedule,
}

impl DecoderTask {
    /// A network with fresh weights on `device`.
    ///
    /// # Errors
    /// When the configuration is not valid.
    pub fn new(config: &DecoderConfig, device: &Device) -> Result<Self> {
        config.validate()?;
        let network = config.init(device);
        Ok(Self { network, config: config.clone(), schedule: config.diffusion.noise_schedule()? })
    }

    /// A task that goes on with a trained network, whose input channels are extended to those of the configuration: new
    /// ones are ignored at first. `network` must be on an autodiff device.
    ///
    /// # Errors
    /// When the configuration is not valid.
    pub fn with_network(config: &DecoderConfig, mut network: DecoderNetwork) -> Result<Self> {
        config.validate()?;
        network.unet = network.unet.with_input_channels(config.unet.in_channels);
        Ok(Self { network, config: config.clone(), schedule: config.diffusion.noise_schedule()? })
    }

    /// The configuration.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The loss of a batch.
    pub fn loss_terms(&self, batch: DecoderBatch) -> DiffusionLoss {
        let conditioning = &self.network.conditioning;
        let scaled = conditioning.scale(batch.embedding);
        let [b, d] = scaled.dims();
        let drop = TensorData::new(batch.drop_image, [b, 1]);
        let drop = Tensor::<2, Bool>::from_data(drop, &scaled.device()).expand([b, d]);
        let scaled = scaled.mask_where(drop, conditioning.null(b));
        let prepared = self.network.prepare(conditioning.forward(scaled, &batch.text));
        let (x_t, t) = (batch.images.x_t(&self.schedule), &batch.images.t);
        let read = |estimate| self.config.input(x_t.clone(), estimate, batch.known.as_ref());
        let estimate = (self.config.self_conditioning && batch.estimate_first).then(|| {
            let out = self.network.forward(read(None), t, &prepared).slice_dim(1, 0..3);
            let estimate = self.config.diffusion.prediction.x_start(&self.schedule, out, x_t.clone(), t);
            estimate.clamp(-1.0, 1.0).detach()
        });
        let out = self.network.forward(read(estimate), t, &prepared);
        batch.images.loss(out, &self.config.diffusion, &self.schedule)
    }
}

impl TrainTask for DecoderTask {
    type Batch = DecoderBatch;

    fn loss(&self, batch: DecoderBatch) -> StepOutput {
        output(self.loss_terms(batch))
    }
}
