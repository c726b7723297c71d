//! Training of the diffusion prior.
//!
//! Everything random in a batch (timesteps, noise, dropped captions) comes from the seed it is drawn with, so a batch
//! is a pure function of (seed, step).

use burn::prelude::*;
use burn::train::{TrainOutput, TrainStep};
use dalle2_core::diffusion::{NoiseSchedule, item_mse, standard_normal};
use dalle2_core::nn::l2_normalize;
use dalle2_core::train::StepOutput;
use dalle2_core::{Result, TextCondition};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{DiffusionPriorConfig, PriorNetwork};

/// Share of captions that become the empty one, which makes guidance possible (DALL·E 2, section 2.2).
pub const CAPTION_DROPOUT: f64 = 0.1;

/// One batch for [`PriorTask`].
#[derive(Debug, Clone)]
pub struct PriorBatch {
    /// The captions, already replaced by the empty one where dropped.
    pub text: TextCondition,
    /// CLIP image embeddings `[B, D]`, as the encoder gives them.
    pub embedding: Tensor<2>,
    /// Timestep of each item.
    pub t: Vec<usize>,
    /// Standard normal noise `[B, D]`.
    pub noise: Tensor<2>,
}

impl PriorBatch {
    /// Draws timesteps, noise and dropped captions from `seed`.
    ///
    /// # Shapes
    /// - text: B captions
    /// - null: the empty caption, batch 1
    /// - embedding: `[B, D]`
    ///
    /// # Panics
    /// When the batches differ, or `dropout` is no probability.
    pub fn draw(
        seed: u64,
        text: &TextCondition,
        null: &TextCondition,
        embedding: Tensor<2>,
        dropout: f64,
        train_steps: usize,
    ) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let [b, d] = embedding.dims();
        let t = (0..b).map(|_| rng.random_range(0..train_steps)).collect();
        let drop: Vec<bool> = (0..b).map(|_| rng.random_bool(dropout)).collect();
        let noise = TensorData::new(standard_normal(&mut rng, b * d), [b, d]);
        let noise = Tensor::from_data(noise, &embedding.device());
        Self { text: text.replace_rows(null, &drop), embedding, t, noise }
    }
}

/// The network with what its loss needs; implements Burn's [`TrainStep`].
#[derive(Module, Debug)]
pub struct PriorTask {
    /// The network that is trained.
    pub network: PriorNetwork,
    #[module(skip)]
    config: DiffusionPriorConfig,
    #[module(skip)]
    schedule: NoiseSchedule,
}

/// The loss of a batch and a figure to watch, each `[1]`.
#[derive(Debug, Clone)]
pub struct PriorLoss {
    /// Mean squared error of the clean embedding in the scaled space.
    pub mse: Tensor<1>,
    /// Mean cosine of predicted and true embedding in CLIP's space, over all timesteps.
    pub cosine: Tensor<1>,
}

impl PriorTask {
    /// A network with fresh weights on `device`.
    ///
    /// # Errors
    /// When the configuration is not valid.
    pub fn new(config: &DiffusionPriorConfig, device: &Device) -> Result<Self> {
        Ok(Self { network: config.init(device)?, config: config.clone(), schedule: config.noise_schedule()? })
    }

    /// The configuration.
    pub fn config(&self) -> &DiffusionPriorConfig {
        &self.config
    }

    /// The loss of a batch.
    pub fn loss(&self, batch: PriorBatch) -> PriorLoss {
        let scale = &self.config.image_scale;
        let x_start = scale.scale(batch.embedding);
        let x_t = self.schedule.q_sample(x_start.clone(), &batch.t, batch.noise);
        let predicted = self.network.forward(x_t, &batch.t, &batch.text);
        let directions = [&predicted, &x_start].map(|x| l2_normalize(scale.unscale(x.clone().without_autodiff())));
        let [found, expected] = directions;
        PriorLoss { mse: item_mse(predicted, x_start).mean(), cosine: (found * expected).sum_dim(1).mean() }
    }
}

impl TrainStep for PriorTask {
    type Input = PriorBatch;
    type Output = StepOutput;

    fn step(&self, batch: PriorBatch) -> TrainOutput<StepOutput> {
        let loss = self.loss(batch);
        let output = StepOutput::new(loss.mse.clone()).with("cosine", loss.cosine);
        TrainOutput::new(self, loss.mse.backward(), output)
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;
    use crate::DiffusionPrior;
    use burn::optim::{AdamWConfig, GradientsParams};
    use burn::tensor::Distribution;
    use dalle2_core::diffusion::SeededNoise;
    use dalle2_core::{Prior, SampleOptions, TokenMask};

    const D: usize = 24;
    const W: usize = 16;
    const S: usize = 4;

    fn random<const N: usize>(seed: u64, shape: [usize; N], device: &Device) -> Tensor<N> {
        let values = standard_normal(&mut ChaCha8Rng::seed_from_u64(seed), shape.iter().product());
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    fn text(seed: u64, count: usize, device: &Device) -> TextCondition {
        let lengths: Vec<usize> = (0..count).map(|i| 2 + i % (S - 1)).collect();
        TextCondition {
            pooled: random(seed, [count, D], device),
            tokens: random(seed + 1, [count, S, W], device),
            mask: TokenMask::from_lengths(&lengths, S, device),
        }
    }

    fn config() -> DiffusionPriorConfig {
        DiffusionPriorConfig { d_model: 64, n_heads: 4, n_layers: 2, ..DiffusionPriorConfig::tiny(D, W, S) }
    }

    #[test]
    fn a_batch_is_a_function_of_its_seed() {
        let device = Device::flex();
        let (text, null, images) = (text(1, 6, &device), text(9, 1, &device), random(3, [6, D], &device));
        let draw = |seed| PriorBatch::draw(seed, &text, &null, images.clone(), 0.5, 1000);
        let (a, b, c) = (draw(5), draw(5), draw(6));
        assert_eq!((a.t.clone(), a.noise.to_data()), (b.t, b.noise.to_data()));
        assert_eq!(a.text.tokens.to_data(), b.text.tokens.to_data());
        assert!(a.t != c.t && a.noise.to_data() != c.noise.to_data());
        assert!(a.t.iter().all(|t| *t < 1000));
    }

    #[test]
    fn the_first_loss_is_the_variance_of_the_embeddings() {
        let device = Device::flex();
        let task = PriorTask::new(&config(), &device).unwrap();
        let (text, null) = (text(1, 8, &device), text(9, 1, &device));
        let batch = PriorBatch::draw(0, &text, &null, random(3, [8, D], &device), CAPTION_DROPOUT, 1000);
        // The network starts at 0, and scaled embeddings have unit variance.
        assert!((task.loss(batch).mse.into_scalar::<f32>() - 1.0).abs() < 1e-5);
    }

    #[test]
    fn every_parameter_gets_a_gradient() {
        let device = Device::flex().autodiff();
        let task = PriorTask::new(&config(), &device).unwrap();
        let (text, null) = (text(1, 4, &device), text(9, 1, &device));
        let batch = PriorBatch::draw(0, &text, &null, random(3, [4, D], &device), CAPTION_DROPOUT, 1000);
        let output = task.step(batch);
        // Six linear layers and the final norm with weight and bias, query, positions, and 16 tensors per block.
        assert_eq!(output.grads.len(), 2 * 7 + 2 + 2 * 16);
    }

    #[test]
    fn random_pairs_are_learned_by_heart_and_sampled() {
        const PAIRS: usize = 32;
        const STEPS: u64 = 400;
        let device = Device::flex();
        let ad = device.clone().autodiff();
        device.seed(1);
        let (captions, null) = (text(1, PAIRS, &device), text(9, 1, &device));
        let images = l2_normalize(Tensor::random([PAIRS, D], Distribution::Normal(0.0, 1.0), &device));

        let mut task = PriorTask::new(&config(), &ad).unwrap();
        let mut optimizer = AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(0.0).init();
        let on_ad = (captions.to_device(&ad), null.to_device(&ad), images.clone().to_device(&ad));
        for step in 0..STEPS {
            let batch = PriorBatch::draw(step, &on_ad.0, &on_ad.1, on_ad.2.clone(), CAPTION_DROPOUT, 1000);
            let grads = GradientsParams::from_grads(task.loss(batch).mse.backward(), &task);
            let lr = 2e-3 * (1.0 - step as f64 / STEPS as f64);
            task = optimizer.step(lr, task, grads);
        }

        let prior = DiffusionPrior::new(config(), task.network).unwrap();
        let options = SampleOptions { steps: Some(10), guidance: Some(1.0), candidates: Some(1), ..Default::default() };
        let mut noise = SeededNoise::consecutive(100, PAIRS, 0);
        let found = prior.sample(&captions, &null, &options, &mut noise, &mut |_| ControlFlow::Continue(())).unwrap();
        let cosine = (found * images).sum_dim(1).into_data().try_to_vec::<f32>().unwrap();
        let mean = cosine.iter().sum::<f32>() / PAIRS as f32;
        assert!(mean >= 0.98, "mean cosine {mean}: {cosine:?}");
    }
}
