//! Training of the diffusion prior.
//!
//! Everything random in a batch (timesteps, noise, dropped captions) comes from the seed it is drawn with, so a batch
//! is a pure function of (seed, step).

use burn::prelude::*;
use dalle2_core::diffusion::{NoiseSchedule, PredictionType, item_mse, standard_normal, stratified_timesteps};
use dalle2_core::nn::l2_normalize;
use dalle2_core::train::{StepOutput, TrainTask, kept_by_transformer};
use dalle2_core::{ConfigError, Result, TextCondition};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{DiffusionPrior, DiffusionPriorConfig, PriorNetwork};

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
    /// Whether a network with self-conditioning reads an estimate of its own in this step: half of the steps, so that it
    /// can also begin without one.
    pub own_estimate: bool,
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
        let t = stratified_timesteps(&mut rng, b, train_steps);
        let drop: Vec<bool> = (0..b).map(|_| rng.random_bool(dropout)).collect();
        let noise = TensorData::new(standard_normal(&mut rng, b * d), [b, d]);
        let noise = Tensor::from_data(noise, &embedding.device());
        let own_estimate = rng.random_bool(0.5);
        Self { text: text.replace_rows(null, &drop), embedding, t, noise, own_estimate }
    }
}

impl DiffusionPriorConfig {
    /// Numbers that the forward pass over one pair keeps for the backward pass, about.
    pub fn kept_per_pair(&self) -> u64 {
        kept_by_transformer(&self.transformer(), self.sequence_length())
    }
}

/// The network with what its loss needs.
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
    /// What is minimised: the squared error with the weights of the configuration.
    pub total: Tensor<1>,
    /// Mean squared error of the clean embedding in the scaled space.
    pub mse: Tensor<1>,
    /// Mean cosine of predicted and true embedding in CLIP's space, over all timesteps.
    pub cosine: Tensor<1>,
}

impl PriorTask {
    /// A network with fresh weights on `device`.
    ///
    /// # Errors
    /// When the configuration is not valid, or its network predicts something else than the clean embedding.
    pub fn new(config: &DiffusionPriorConfig, device: &Device) -> Result<Self> {
        config.validate()?;
        let prediction = config.diffusion.prediction;
        if prediction != PredictionType::XStart {
            let expected = "training supports the clean embedding only: leave it out";
            return Err(ConfigError::new("prediction", format!("{prediction:?}"), expected).into());
        }
        let (network, schedule) = (config.init(device), config.diffusion.noise_schedule()?);
        Ok(Self { network, config: config.clone(), schedule })
    }

    /// The prior that the network is so far.
    ///
    /// # Errors
    /// When the configuration is not valid.
    pub fn prior(&self) -> Result<DiffusionPrior> {
        DiffusionPrior::new(self.config.clone(), self.network.clone())
    }

    /// The configuration.
    pub fn config(&self) -> &DiffusionPriorConfig {
        &self.config
    }

    /// Computes the loss of a batch and its terms.
    pub fn loss_terms(&self, batch: PriorBatch) -> PriorLoss {
        let scale = &self.config.image_scale;
        let x_start = scale.scale(batch.embedding);
        let x_t = self.schedule.q_sample(x_start.clone(), &batch.t, batch.noise);
        let estimate = (self.config.self_conditioning && batch.own_estimate).then(|| {
            let estimate = self.network.forward(x_t.clone(), &batch.t, &batch.text);
            self.config.diffusion.clip().apply(estimate.detach())
        });
        let predicted = self.network.forward_with(x_t, &batch.t, &batch.text, estimate);
        let directions = [&predicted, &x_start].map(|x| l2_normalize(scale.unscale(x.clone().without_autodiff())));
        let [found, expected] = directions;
        let errors = item_mse(predicted, x_start);
        let mse = errors.clone().mean();
        let total = self.config.diffusion.weighted_mean(&self.schedule, errors, &batch.t);
        PriorLoss { total, mse, cosine: (found * expected).sum_dim(1).mean() }
    }
}

impl TrainTask for PriorTask {
    type Batch = PriorBatch;

    fn loss(&self, batch: PriorBatch) -> StepOutput {
        let terms = self.loss_terms(batch);
        StepOutput::new(terms.total).with("mse", terms.mse).with("cosine", terms.cosine)
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use burn::optim::{AdamWConfig, GradientsParams};
    use burn::tensor::Distribution;
    use dalle2_core::diffusion::{LossWeight, SeededNoise};
    use dalle2_core::{Captions, Prior, PriorOptions, TokenMask};

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
        assert!((task.loss_terms(batch).mse.into_scalar::<f32>() - 1.0).abs() < 1e-5);
    }

    #[test]
    fn every_parameter_gets_a_gradient() {
        let device = Device::flex().autodiff();
        let task = PriorTask::new(&config(), &device).unwrap();
        let (text, null) = (text(1, 4, &device), text(9, 1, &device));
        let batch = PriorBatch::draw(0, &text, &null, random(3, [4, D], &device), CAPTION_DROPOUT, 1000);
        let output = task.gradients(batch, 1.0);
        // Six linear layers and the final norm with weight and bias, query, positions, and 16 tensors per block.
        assert_eq!(output.grads.len(), 2 * 7 + 2 + 2 * 16);
    }

    #[test]
    fn min_snr_weights_are_applied_and_checked() {
        let device = Device::flex();
        let weighted = |gamma| {
            let mut config = config();
            config.diffusion.loss_weight = Some(LossWeight::MinSnr { gamma });
            PriorTask::new(&config, &device)
        };
        let (text, null) = (text(1, 8, &device), text(9, 1, &device));
        let batch = PriorBatch::draw(0, &text, &null, random(3, [8, D], &device), CAPTION_DROPOUT, 1000);
        let schedule = config().diffusion.noise_schedule().unwrap();
        let expected: f64 = batch.t.iter().map(|t| schedule.snr(*t).min(5.0)).sum::<f64>() / 8.0;
        // A fresh network predicts 0, so every error is the variance of a scaled embedding, 1.
        let loss = weighted(5.0).unwrap().loss_terms(batch);
        assert!((f64::from(loss.total.into_scalar::<f32>()) / expected - 1.0).abs() < 1e-4);
        assert!((loss.mse.into_scalar::<f32>() - 1.0).abs() < 1e-5);
        let error = weighted(f64::NAN).unwrap_err().to_string();
        assert!(error.contains("gamma"), "{error}");
    }

    #[test]
    fn an_own_estimate_is_used_in_half_of_the_steps_and_gets_a_gradient() {
        let device = Device::flex().autodiff();
        let config = DiffusionPriorConfig { self_conditioning: true, ..config() };
        let task = PriorTask::new(&config, &device).unwrap();
        let (text, null) = (text(1, 4, &device), text(9, 1, &device));
        let images = random(3, [4, D], &device);
        let draw = |seed| PriorBatch::draw(seed, &text, &null, images.clone(), CAPTION_DROPOUT, 1000);
        let own = (0..200).filter(|seed| draw(*seed).own_estimate).count();
        assert!((70..130).contains(&own), "{own} of 200");
        let seed = (0..).find(|seed| draw(*seed).own_estimate).unwrap();
        assert_eq!(task.gradients(draw(seed), 1.0).grads.len(), 2 * 7 + 2 + 1 + 2 * 16, "one more matrix than without");
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
            let grads = GradientsParams::from_grads(task.loss_terms(batch).total.backward(), &task);
            let lr = 2e-3 * (1.0 - step as f64 / STEPS as f64);
            task = optimizer.step(lr, task, grads);
        }

        let prior = DiffusionPrior::new(config(), task.network).unwrap();
        let options = PriorOptions { steps: Some(10), guidance: Some(1.0), candidates: Some(1), ..Default::default() };
        let mut noise = SeededNoise::consecutive(100, PAIRS, 0);
        let found =
            prior.sample(Captions { text: &captions, null: &null }, &options, &mut noise, &mut |_| Ok(())).unwrap();
        let cosine = (found * images).sum_dim(1).into_data().try_to_vec::<f32>().unwrap();
        let mean = cosine.iter().sum::<f32>() / PAIRS as f32;
        assert!(mean >= 0.98, "mean cosine {mean}: {cosine:?}");
    }
}
