//! [`Clip`] with the choices of its training, as a task of the trainer.

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

/// Which loss CLIP is trained with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClipLoss {
    /// Cross entropy in both directions, as in CLIP; the temperature begins at 0.07.
    #[default]
    Softmax,
    /// Pairwise sigmoids, as in SigLIP; the temperature begins at 0.1 and the bias at −10 (Zhai et al. 2023, section 3.2).
    Sigmoid,
}

/// Whether the image tower learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageTower {
    /// It does.
    #[default]
    Trained,
    /// It stays as it is, and the text tower learns to fit it (locked-image tuning, Zhai et al. 2022, arXiv 2111.07991).
    /// For towers that were trained before.
    Locked,
}

/// How CLIP is trained; what is missing from the JSON has its default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClipTaskOptions {
    /// The loss.
    pub loss: ClipLoss,
    /// Pairs that go through the towers at once. Larger batches go through in parts, with the gradients of the whole: the
    /// embeddings are computed without a graph, the loss is differentiated with respect to them, and each part is computed
    /// again to carry its gradients to the weights (Gao et al. 2021, arXiv 2101.06983). Memory is that of one part, time that
    /// of one more forward pass. `None` takes every batch at once.
    pub chunk: Option<usize>,
    /// Whether the image tower learns.
    pub image_tower: ImageTower,
}

impl ClipTaskOptions {
    /// Checks every field.
    ///
    /// # Errors
    /// When the parts of a batch are to have no pairs.
    pub fn validate(&self) -> Result<(), ConfigError> {
        match self.chunk {
            Some(0) => Err(ConfigError::new("chunk", 0, "must be at least 1, or null")),
            _ => Ok(()),
        }
    }
}

impl ClipConfig {
    /// Numbers that the forward pass over one pair keeps for the backward pass, about; `patches` of its image are read.
    pub fn kept_per_pair(&self, patches: usize) -> u64 {
        let (vision, text) = (&self.vision, &self.text);
        let images = kept_by_transformer(&vision.transformer(), 1 + patches) + 2 * (vision.d_model * patches) as u64;
        let captions = kept_by_transformer(&text.transformer(), text.context_length);
        images + captions + (3 * vision.image_size.pow(2)) as u64
    }
}

/// CLIP with what its loss needs; implements Burn's [`TrainStep`].
#[derive(Module, Debug)]
pub struct ClipTask {
    /// The towers and the temperature.
    pub clip: Clip,
    /// Added to the scaled cosines, `[1]`; the sigmoid loss only.
    pub logit_bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    options: ClipTaskOptions,
    #[module(skip)]
    threads: Option<Arc<DeviceThreads>>,
}

impl ClipTask {
    /// A model with fresh weights on `device`.
    ///
    /// # Errors
    /// When the configuration or an option is not valid.
    pub fn new(config: &ClipConfig, options: &ClipTaskOptions, device: &Device) -> Result<Self> {
        config.validate()?;
        let mut clip = config.init(device);
        if options.loss == ClipLoss::Sigmoid {
            clip.logit_scale = Param::from_tensor(Tensor::from_floats([10f32.ln()], device));
        }
        Self::with_clip(clip, options)
    }

    /// A task that goes on with a model, which must be on an autodiff device to be trained.
    ///
    /// # Errors
    /// When an option is not valid.
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

    /// The same task with an image tower that was trained before, on the same device with autodiff.
    pub fn with_image_tower(mut self, tower: VisionTransformer) -> Self {
        self.clip.vision = match self.options.image_tower {
            ImageTower::Trained => tower,
            ImageTower::Locked => tower.freeze(),
        };
        self
    }

    /// The same task with every batch divided among several devices, the first of which must be the model's: all pairs of
    /// the batch are negatives of one another, wherever they are, and the gradients are those of one device.
    ///
    /// A batch is made on the first device. Each step sends every device its pairs, a copy of the weights and the gradients of
    /// its embeddings, and every device sends back its embeddings and the gradients of the weights. The loss, which needs
    /// all embeddings, and the optimizer are computed on the first device. A share that is larger than
    /// [`ClipTaskOptions::chunk`] goes through in parts.
    ///
    /// # Errors
    /// When there is no device, the first one is not the model's, or a thread cannot be started.
    pub fn with_devices(mut self, devices: &[Device]) -> Result<Self> {
        let threads = DeviceThreads::start(&self.clip.logit_scale.val().device(), devices)?;
        self.threads = (devices.len() > 1).then(|| Arc::new(threads));
        Ok(self)
    }

    /// The threads of its devices, if there are several.
    pub(super) fn threads(&self) -> Option<&DeviceThreads> {
        self.threads.as_deref()
    }

    /// Whether training drops elements at random.
    pub(super) fn has_dropout(&self) -> bool {
        self.clip.vision.transformer.has_dropout() || self.clip.text.transformer.has_dropout()
    }

    /// How it is trained.
    pub fn options(&self) -> &ClipTaskOptions {
        &self.options
    }

    /// The loss with the parameters as they are.
    pub fn objective(&self) -> Objective {
        let logit_scale = self.clip.logit_scale.val();
        match &self.logit_bias {
            None => Objective::Softmax { logit_scale },
            Some(bias) => Objective::Sigmoid { logit_scale, logit_bias: bias.val() },
        }
    }

    /// The images' embeddings, `[B, D]`.
    pub(super) fn embed_images(&self, batch: &ClipBatch) -> Tensor<2> {
        match &batch.patches {
            None => self.clip.vision.forward(batch.pixels.clone()),
            Some(kept) => self.clip.vision.forward_patches(batch.pixels.clone(), kept.clone()),
        }
    }

    /// The captions' embeddings, `[B, D]`.
    pub(super) fn embed_captions(&self, batch: &ClipBatch) -> Tensor<2> {
        self.clip.text.forward(&batch.captions).pooled
    }

    /// The loss of a batch in one piece.
    fn forward(&self, batch: ClipBatch) -> StepOutput {
        let (b, targets) = (batch.len(), &batch.targets);
        let (image, text) = (self.embed_images(&batch), self.embed_captions(&batch));
        let LossShare { loss, logits } = self.objective().share(image, text, Some(targets), 0..b);
        self.report(loss, matched(logits, targets, 0..b) / b as f64)
    }

    /// The output of a step from its loss and accuracy.
    pub(super) fn report(&self, loss: Tensor<1>, accuracy: Tensor<1>) -> StepOutput {
        let scale = self.objective().scale();
        let output = StepOutput::new(loss).with("accuracy", accuracy).with("logit_scale", scale);
        match &self.logit_bias {
            Some(bias) => output.with("logit_bias", bias.val()),
            None => output,
        }
    }
}

/// How many of the images `rows`, whose `logits` `[b, B]` these are, have a caption of their class as the nearest, `[1]`.
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

    /// Clamps the logit scale to 100: the loss is blind to values above, so no gradient would bring it back.
    fn after_step(mut self) -> Self {
        self.clip.logit_scale = self.clip.logit_scale.map(|scale| {
            let tracked = scale.is_require_grad();
            scale.clamp(0.0, MAX_LOGIT_SCALE).detach().set_require_grad(tracked)
        });
        self
    }
}
