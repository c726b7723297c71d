//! Training of the autoregressive prior.

use burn::prelude::*;
use burn::tensor::activation::log_softmax;
use dalle2_core::train::{StepOutput, TrainTask, kept_by_transformer};
use dalle2_core::{Result, TextCondition};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{AutoregressiveNetwork, AutoregressivePrior, AutoregressivePriorConfig, EmbeddingQuantizer};

/// One batch for [`AutoregressiveTask`].
#[derive(Debug, Clone)]
pub struct AutoregressiveBatch {
    /// The captions, already replaced by the empty one where dropped.
    pub text: TextCondition,
    /// The token of the dot product of each pair `[B]`, or that of dropped captions.
    pub dot: Tensor<1, Int>,
    /// The buckets of the image embeddings' components `[B, K]`.
    pub tokens: Tensor<2, Int>,
}

impl AutoregressiveBatch {
    /// Quantizes embeddings and drops captions, which `seed` draws; with a caption goes its dot product.
    ///
    /// # Shapes
    /// - text: B captions
    /// - null: the empty caption, batch 1
    /// - embedding: `[B, D]`, in CLIP's space
    ///
    /// # Errors
    /// When the width is not the quantizer's or a value is not finite.
    ///
    /// # Panics
    /// When the batches differ, or `dropout` is no probability.
    pub fn draw(
        seed: u64,
        text: &TextCondition,
        null: &TextCondition,
        embedding: Tensor<2>,
        dropout: f64,
        quantizer: &EmbeddingQuantizer,
    ) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (b, device) = (embedding.dims()[0], embedding.device());
        let drop: Vec<bool> = (0..b).map(|_| rng.random_bool(dropout)).collect();
        let tokens = quantizer.encode(embedding.clone())?;
        let dots = quantizer.dot_tokens(embedding, text.pooled.clone())?;
        let dots = dots.into_iter().zip(&drop).map(|(dot, drop)| if *drop { quantizer.num_dot_buckets() } else { dot });
        let ids = |values: Vec<usize>| values.into_iter().map(|v| v as i64).collect::<Vec<i64>>();
        Ok(Self {
            text: text.replace_rows(null, &drop),
            dot: Tensor::from_data(TensorData::new(ids(dots.collect()), [b]), &device),
            tokens: Tensor::from_data(TensorData::new(ids(tokens), [b, quantizer.num_components()]), &device),
        })
    }
}

impl AutoregressivePriorConfig {
    /// Numbers that the forward pass over one pair keeps for the backward pass, about.
    pub fn kept_per_pair(&self) -> u64 {
        kept_by_transformer(&self.transformer(), self.sequence_length())
    }
}

/// The network with what its loss needs.
#[derive(Module, Debug)]
pub struct AutoregressiveTask {
    /// The network that is trained.
    pub network: AutoregressiveNetwork,
    #[module(skip)]
    config: AutoregressivePriorConfig,
    #[module(skip)]
    quantizer: EmbeddingQuantizer,
}

/// The loss of a batch and a figure to watch, each `[1]`.
#[derive(Debug, Clone)]
pub struct AutoregressiveLoss {
    /// Cross-entropy per component, in nats; an even distribution over N buckets has ln N.
    pub cross_entropy: Tensor<1>,
    /// Mean distance of the most probable bucket from the true one, as a share of the number of buckets.
    pub distance: Tensor<1>,
}

impl AutoregressiveTask {
    /// A network with fresh weights on `device`.
    ///
    /// # Errors
    /// When the configuration is not valid or the quantizer is not the one it describes.
    pub fn new(config: &AutoregressivePriorConfig, quantizer: EmbeddingQuantizer, device: &Device) -> Result<Self> {
        config.validate()?;
        quantizer.check(config)?;
        Ok(Self { network: config.init(device), config: config.clone(), quantizer })
    }

    /// The configuration.
    pub fn config(&self) -> &AutoregressivePriorConfig {
        &self.config
    }

    /// What turns embeddings into tokens.
    pub fn quantizer(&self) -> &EmbeddingQuantizer {
        &self.quantizer
    }

    /// The prior that the network is so far.
    ///
    /// # Errors
    /// When the configuration is not valid.
    pub fn prior(&self) -> Result<AutoregressivePrior> {
        AutoregressivePrior::new(self.config.clone(), self.network.clone(), self.quantizer.clone())
    }

    /// The loss of a batch.
    pub fn loss_terms(&self, batch: AutoregressiveBatch) -> AutoregressiveLoss {
        let logits = self.network.forward(&batch.text, batch.dot, batch.tokens.clone());
        let best = logits.clone().without_autodiff().argmax(2).squeeze_dim::<2>(2).float();
        let true_bucket = batch.tokens.clone().float().without_autodiff();
        let distance = (best - true_bucket).abs().mean() / self.config.buckets as f64;
        let target = batch.tokens.unsqueeze_dim::<3>(2); // [B, K, 1]
        let cross_entropy = log_softmax(logits, 2).gather(2, target).mean().neg();
        AutoregressiveLoss { cross_entropy, distance }
    }
}

impl TrainTask for AutoregressiveTask {
    type Batch = AutoregressiveBatch;

    fn loss(&self, batch: AutoregressiveBatch) -> StepOutput {
        let terms = self.loss_terms(batch);
        StepOutput::new(terms.cross_entropy).with("distance", terms.distance)
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::QuantizerOptions;
    use burn::optim::{AdamWConfig, GradientsParams};
    use dalle2_core::diffusion::{SeededNoise, standard_normal};
    use dalle2_core::nn::l2_normalize;
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

    fn config() -> AutoregressivePriorConfig {
        let tiny = AutoregressivePriorConfig::tiny(D, W, S);
        AutoregressivePriorConfig { components: 20, d_model: 64, n_heads: 4, n_layers: 2, ..tiny }
    }

    fn quantizer(device: &Device) -> EmbeddingQuantizer {
        let options = QuantizerOptions::of(&config());
        EmbeddingQuantizer::fit(random(3, [64, D], device), random(1, [64, D], device), &options).unwrap()
    }

    #[test]
    fn a_batch_is_a_function_of_its_seed_and_drops_the_dot_product_with_the_caption() {
        let device = Device::flex();
        let (text, null, images) = (text(1, 16, &device), text(9, 1, &device), random(3, [16, D], &device));
        let quantizer = quantizer(&device);
        let draw =
            |seed, dropout| AutoregressiveBatch::draw(seed, &text, &null, images.clone(), dropout, &quantizer).unwrap();
        let dots = |batch: &AutoregressiveBatch| batch.dot.to_data().iter::<i64>().collect::<Vec<_>>();
        let (a, b, c) = (draw(5, 0.5), draw(5, 0.5), draw(6, 0.5));
        assert_eq!((dots(&a), a.text.tokens.to_data()), (dots(&b), b.text.tokens.to_data()));
        assert_ne!(dots(&a), dots(&c));
        let none = dots(&draw(5, 0.0));
        assert!(none.iter().all(|dot| *dot < 32));
        for (i, (found, kept)) in dots(&a).into_iter().zip(none).enumerate() {
            let pooled = a.text.pooled.clone().narrow(0, i, 1).into_data();
            let dropped = pooled == null.pooled.clone().into_data();
            assert_eq!(found, if dropped { 32 } else { kept }, "pair {i}");
        }
        assert_eq!(a.tokens.dims(), [16, 20]);
    }

    #[test]
    fn the_first_loss_is_close_to_that_of_an_even_distribution() {
        let device = Device::flex();
        let task = AutoregressiveTask::new(&config(), quantizer(&device), &device).unwrap();
        let (text, null) = (text(1, 8, &device), text(9, 1, &device));
        let batch =
            AutoregressiveBatch::draw(0, &text, &null, random(3, [8, D], &device), 0.1, task.quantizer()).unwrap();
        let loss = task.loss_terms(batch).cross_entropy.into_scalar::<f32>();
        assert!((loss - 1024f32.ln()).abs() < 0.5, "{loss}");
    }

    #[test]
    fn every_parameter_gets_a_gradient() {
        let device = Device::flex();
        let ad = device.clone().autodiff();
        let task = AutoregressiveTask::new(&config(), quantizer(&device), &ad).unwrap();
        let (text, null) = (text(1, 4, &ad), text(9, 1, &ad));
        let batch = AutoregressiveBatch::draw(0, &text, &null, random(3, [4, D], &ad), 0.1, task.quantizer()).unwrap();
        let output = task.gradients(batch, 1.0);
        // Three linear layers and the final norm with weight and bias, two tables, positions, and 16 tensors per block.
        assert_eq!(output.grads.len(), 2 * 4 + 3 + 2 * 16);
    }

    #[test]
    fn random_pairs_are_learned_by_heart_and_sampled() {
        const PAIRS: usize = 32;
        const STEPS: u64 = 380;
        let device = Device::flex();
        let ad = device.clone().autodiff();
        device.seed(1);
        let (mut captions, null) = (text(1, PAIRS, &device), text(9, 1, &device));
        let images = l2_normalize(random(3, [PAIRS, D], &device));
        // As in CLIP, a caption is close to its image. Among pairs that belong together and pairs that do not, the former
        // are the upper half; with finer buckets, the dot product alone would tell the pairs apart.
        captions.pooled = captions.pooled + images.clone() * 10.0;
        let config = AutoregressivePriorConfig { dot_buckets: 2, components: D, ..config() };
        let exchanged = Tensor::cat(vec![captions.pooled.clone().narrow(0, 1, PAIRS - 1), null.pooled.clone()], 0);
        let all = Tensor::cat(vec![captions.pooled.clone(), exchanged], 0);
        let options = QuantizerOptions::of(&config);
        let quantizer = EmbeddingQuantizer::fit(images.clone().repeat_dim(0, 2), all, &options).unwrap();
        let dots = quantizer.dot_tokens(images.clone(), captions.pooled.clone()).unwrap();
        assert_eq!(dots, [1; PAIRS]);
        assert!(quantizer.reconstruction_error(images.clone()).unwrap() < 0.02);

        let mut task = AutoregressiveTask::new(&config, quantizer, &ad).unwrap();
        let mut optimizer = AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(0.0).init();
        let on_ad = (captions.to_device(&ad), null.to_device(&ad), images.clone().to_device(&ad));
        for step in 0..STEPS {
            let images = on_ad.2.clone();
            let batch = AutoregressiveBatch::draw(step, &on_ad.0, &on_ad.1, images, 0.1, task.quantizer()).unwrap();
            let grads = GradientsParams::from_grads(task.loss_terms(batch).cross_entropy.backward(), &task);
            let lr = 3e-3 * (1.0 - step as f64 / STEPS as f64);
            task = optimizer.step(lr, task, grads);
        }

        let options =
            PriorOptions { guidance: Some(1.0), candidates: Some(1), temperature: Some(0.0), ..Default::default() };
        let mut noise = SeededNoise::consecutive(100, PAIRS, 0);
        let prior = task.prior().unwrap();
        let found =
            prior.sample(Captions { text: &captions, null: &null }, &options, &mut noise, &mut |_| Ok(())).unwrap();
        let cosine = (found * images).sum_dim(1).into_data().try_to_vec::<f32>().unwrap();
        let mean = cosine.iter().sum::<f32>() / PAIRS as f32;
        assert!(mean >= 0.98, "mean cosine {mean}: {cosine:?}");
    }

    #[test]
    fn embeddings_that_do_not_fit_are_refused() {
        let device = Device::flex();
        let (text, null) = (text(1, 4, &device), text(9, 1, &device));
        let quantizer = quantizer(&device);
        let message = |images: Tensor<2>| {
            AutoregressiveBatch::draw(0, &text, &null, images, 0.1, &quantizer).unwrap_err().to_string()
        };
        assert!(message(random(3, [4, D + 1], &device)).contains("width 25"));
        assert!(message(random(3, [4, D], &device) * f32::NAN).contains("NaN"));
        let other = AutoregressivePriorConfig { buckets: 512, ..config() };
        let error = AutoregressiveTask::new(&other, quantizer.clone(), &device).unwrap_err().to_string();
        assert!(error.contains("buckets") && error.contains("512"), "{error}");
    }
}
