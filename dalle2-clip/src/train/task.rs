//! Contrastive training of a [`Clip`] as a task of the trainer.

use std::sync::Arc;

use burn::module::Param;
use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::tensor::FloatDType;
use dalle2_core::train::{DeviceThreads, StepGradients, StepOutput, TrainTask, kept_by_transformer};
use dalle2_core::{ConfigError, Result};
use serde::{Deserialize, Serialize};

use super::{ClipBatch, cached};
use crate::loss::{LossShare, MAX_LOGIT_SCALE, Objective, match_probabilities};
use crate::{Clip, ClipConfig, VisionTransformer};

/// The loss of contrastive training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClipLoss {
    /// Cross entropy in both directions, as in CLIP; the temperature starts at 0.07.
    #[default]
    Softmax,
    /// Pairwise sigmoids, as in SigLIP; the temperature starts at 0.1 and the bias at −10 (Zhai et al. 2023, section 3.2).
    Sigmoid,
}

/// Whether the image tower is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageTower {
    /// The image tower is trained.
    #[default]
    Trained,
    /// The image tower is frozen, and the text tower is trained to match it (locked-image tuning, Zhai et al. 2022,
    /// arXiv 2111.07991). For pretrained towers.
    Locked,
}

/// Options of contrastive training; fields that are absent from the JSON have their defaults.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClipTaskOptions {
    /// The loss.
    pub loss: ClipLoss,
    /// Maximum number of pairs in one forward pass. Larger batches are divided into chunks without a change of the
    /// gradients (gradient caching, Gao et al. 2021, arXiv 2101.06983): the embeddings are computed without a graph, the loss
    /// is differentiated with respect to them, and a second forward pass of each chunk propagates the gradients to the
    /// weights. `None` passes each batch at once.
    pub chunk: Option<usize>,
    /// Whether the image tower is trained.
    pub image_tower: ImageTower,
}

impl ClipTaskOptions {
    /// Checks every field.
    ///
    /// # Errors
    /// If `chunk` is 0.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.chunk == Some(0) {
            return Err(ConfigError::new("chunk", 0, "must be at least 1, or null"));
        }
        Ok(())
    }
}

impl ClipConfig {
    /// Estimates the number of activations saved for backward, per pair, with `patches` patches of the image in use.
    pub fn kept_per_pair(&self, patches: usize) -> u64 {
        let (vision, text) = (&self.vision, &self.text);
        let images = kept_by_transformer(&vision.transformer(), 1 + patches) + 2 * (vision.d_model * patches) as u64;
        let captions = kept_by_transformer(&text.transformer(), text.context_length);
        images + captions + (3 * vision.image_size.pow(2)) as u64
    }
}

/// A CLIP with the parameters of its loss.
#[derive(Module, Debug)]
pub struct ClipTask {
    /// The towers and the temperature.
    pub clip: Clip,
    /// Bias of the sigmoid loss, added to the scaled cosines, `[1]`.
    pub logit_bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    options: ClipTaskOptions,
    #[module(skip)]
    threads: Option<Arc<DeviceThreads>>,
}

impl ClipTask {
    /// Creates a task with random weights on `device`.
    ///
    /// # Errors
    /// If the configuration or an option is invalid.
    pub fn new(config: &ClipConfig, options: &ClipTaskOptions, device: &Device) -> Result<Self> {
        config.validate()?;
        let mut clip = config.init(device);
        if options.loss == ClipLoss::Sigmoid {
            clip.logit_scale = Param::from_tensor(Tensor::from_floats([10f32.ln()], device));
        }
        Self::with_clip(clip, options)
    }

    /// Creates a task that trains an existing model, which must be on an autodiff device.
    ///
    /// # Errors
    /// If an option is invalid.
    pub fn with_clip(mut clip: Clip, options: &ClipTaskOptions) -> Result<Self> {
        options.validate()?;
        let device = clip.logit_scale.val().device();
        let logit_bias =
            (options.loss == ClipLoss::Sigmoid).then(|| Param::from_tensor(Tensor::from_floats([-10.0f32], &device)));
        if options.image_tower == ImageTower::Locked {
            clip.vision = clip.vision.freeze();
        }
        Ok(Self { clip, logit_bias, options: options.clone(), threads: None })
    }

    /// Replaces the image tower by a pretrained one on the same autodiff device.
    pub fn with_image_tower(mut self, tower: VisionTransformer) -> Self {
        self.clip.vision = match self.options.image_tower {
            ImageTower::Trained => tower,
            ImageTower::Locked => tower.freeze(),
        };
        self
    }

    /// Divides every batch among several devices, without a change of the gradients: pairs are negatives across devices.
    /// The first device must be the model's.
    ///
    /// Each step sends every device its pairs, a copy of the weights and the gradients of its embeddings; every device
    /// returns its embeddings and the gradients of the weights. The first device computes the loss, which depends on all
    /// embeddings, and the optimiser step. [`ClipTaskOptions::chunk`] applies to each device.
    ///
    /// # Errors
    /// If there is no device, the first one is not the model's, or a thread cannot be started.
    pub fn with_devices(mut self, devices: &[Device]) -> Result<Self> {
        let threads = DeviceThreads::start(&self.clip.logit_scale.val().device(), devices)?;
        self.threads = (devices.len() > 1).then(|| Arc::new(threads));
        Ok(self)
    }

    /// Returns the threads of the devices, if there are several.
    pub(super) fn threads(&self) -> Option<&DeviceThreads> {
        self.threads.as_deref()
    }

    /// Returns whether dropout is active.
    pub(super) fn has_dropout(&self) -> bool {
        self.clip.vision.transformer.has_dropout() || self.clip.text.transformer.has_dropout()
    }

    /// Returns the options.
    pub fn options(&self) -> &ClipTaskOptions {
        &self.options
    }

    /// Returns the loss with its current parameters.
    pub(crate) fn objective(&self) -> Objective {
        let logit_scale = self.clip.logit_scale.val();
        match &self.logit_bias {
            None => Objective::Softmax { logit_scale },
            Some(bias) => Objective::Sigmoid { logit_scale, logit_bias: bias.val() },
        }
    }

    /// Embeds the images of a batch, `[B, D]`.
    pub(super) fn embed_images(&self, batch: &ClipBatch) -> Tensor<2> {
        match &batch.patches {
            None => self.clip.vision.forward(batch.pixels.clone()),
            Some(patches) => self.clip.vision.forward_patches(batch.pixels.clone(), patches.clone()),
        }
    }

    /// Embeds the captions of a batch, `[B, D]`.
    pub(super) fn embed_captions(&self, batch: &ClipBatch) -> Tensor<2> {
        self.clip.text.forward(&batch.captions).pooled
    }

    /// Computes the loss of a batch in one forward pass.
    fn forward(&self, batch: ClipBatch) -> StepOutput {
        let (b, targets) = (batch.len(), &batch.targets);
        let (image, text) = (self.embed_images(&batch), self.embed_captions(&batch));
        let LossShare { loss, logits } = self.objective().share(image, text, Some(targets), 0..b);
        self.report(loss, matched(logits, targets, 0..b) / b as f64)
    }

    /// Creates the output of a step from its loss and accuracy.
    pub(super) fn report(&self, loss: Tensor<1>, accuracy: Tensor<1>) -> StepOutput {
        let scale = self.objective().scale();
        let output = StepOutput::new(loss).with("accuracy", accuracy).with("logit_scale", scale);
        match &self.logit_bias {
            Some(bias) => output.with("logit_bias", bias.val()),
            None => output,
        }
    }
}

/// Counts the images `rows` with a nearest caption of the same class, from their `logits` `[b, B]`, as `[1]`.
pub(super) fn matched(logits: Tensor<2>, targets: &[usize], rows: std::ops::Range<usize>) -> Tensor<1> {
    let logits = logits.without_autodiff();
    let matches = match_probabilities(Some(targets), targets.len(), rows, &logits.device());
    matches.gather(1, logits.argmax(1)).greater_scalar(0.0).float().cast(FloatDType::F32).sum()
}

impl TrainTask for ClipTask {
    type Batch = ClipBatch;

    fn loss(&self, batch: ClipBatch) -> StepOutput {
        self.forward(batch)
    }

    fn gradients(&self, batch: ClipBatch, loss_scale: f64) -> StepGradients {
        let chunk = self.options.chunk.unwrap_or(batch.len());
        if chunk < batch.len() || self.threads.is_some() {
            return cached::gradients(self, batch, loss_scale);
        }
        let output = self.forward(batch);
        let grads = (output.loss.clone() * loss_scale).backward();
        StepGradients { grads: GradientsParams::from_grads(grads, self), output: output.detach() }
    }

    /// Clamps the logit scale of the softmax loss to [1, 100]: beyond the bound of the loss it would get no gradient.
    fn after_step(mut self) -> Self {
        if self.options.loss == ClipLoss::Sigmoid {
            return self;
        }
        self.clip.logit_scale = self.clip.logit_scale.map(|scale| {
            let tracked = scale.is_require_grad();
            scale.clamp(0.0, MAX_LOGIT_SCALE).detach().set_require_grad(tracked)
        });
        self
    }
}
