//! Both towers of CLIP and the learned temperature.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Param;
use burn::prelude::*;
use dalle2_core::nn::Activation;
use dalle2_core::store::{self, WEIGHTS_FILE};
use dalle2_core::{ConfigError, FloatType, Result};
use serde::{Deserialize, Serialize};

use crate::import::clip_tensor_name;
use crate::{
    TextTransformer, TextTransformerConfig, TokenBatch, VisionTransformer, VisionTransformerConfig, contrastive_loss,
};

/// Configuration of a [`Clip`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipConfig {
    /// The vision tower.
    pub vision: VisionTransformerConfig,
    /// The text tower.
    pub text: TextTransformerConfig,
}

/// The two towers of CLIP.
#[derive(Module, Debug)]
pub struct Clip {
    /// Embeds images.
    pub vision: VisionTransformer,
    /// Embeds captions.
    pub text: TextTransformer,
    /// Logarithm of the factor on the cosines in the loss.
    pub logit_scale: Param<Tensor<1>>,
}

impl ClipConfig {
    /// A configuration for a few dozen concepts and minutes on a CPU: 32 px, embeddings of 64 components, 0.86 M parameters
    /// plus 96 per token. Intended for use with [`with_vocabulary`](Self::with_vocabulary).
    pub fn tiny() -> Self {
        Self {
            vision: VisionTransformerConfig {
                activation: Activation::Gelu,
                ..VisionTransformerConfig::new([32, 8], [128, 4, 3], 64)
            },
            text: TextTransformerConfig {
                activation: Activation::Gelu,
                ..TextTransformerConfig::new(32, [96, 4, 2], 64)
            },
        }
    }

    /// A configuration for the emoji: 64 px, embeddings of 128 components, 2.5 M parameters plus 128 per token. Intended for
    /// use with [`with_vocabulary`](Self::with_vocabulary).
    pub fn emoji() -> Self {
        Self {
            vision: VisionTransformerConfig {
                activation: Activation::Gelu,
                d_ff: Some(576),
                ..VisionTransformerConfig::new([64, 16], [192, 6, 4], 128)
            },
            text: TextTransformerConfig {
                activation: Activation::Gelu,
                ..TextTransformerConfig::new(32, [128, 4, 4], 128)
            },
        }
    }

    /// A variant of [`tiny`](Self::tiny) that transformers and diffusers can express: with the full vocabulary, and token
    /// encodings of the width of the embeddings. 4.5 M parameters, mostly token embeddings.
    pub fn portable() -> Self {
        let mut config = Self::tiny();
        config.text =
            TextTransformerConfig { activation: Activation::Gelu, ..TextTransformerConfig::new(32, [64, 4, 2], 64) };
        config
    }

    /// Returns the preset with the name `name`.
    ///
    /// # Errors
    /// If no preset has that name; the message lists the names.
    pub fn preset(name: &str) -> Result<Self, ConfigError> {
        match name {
            "tiny" => return Ok(Self::tiny()),
            "emoji" => return Ok(Self::emoji()),
            "portable" => return Ok(Self::portable()),
            "small" => return Ok(Self::small()),
            "base" => return Ok(Self::base()),
            "karlo" => return Ok(Self::karlo()),
            "paper" => return Ok(Self::paper()),
            _ => {}
        }
        let published = Self::published_by_name();
        let known = published.each_ref().map(|(name, _)| *name).join(", ");
        let others = "tiny, small, base, karlo, paper, emoji, portable";
        let preset = published.into_iter().find(|(preset, _)| *preset == name).map(|(_, config)| config);
        preset.ok_or_else(|| ConfigError::new("preset", name, format!("must be one of {others}, {known}")))
    }

    /// Restricts the vocabulary of the text tower, see [`TextTransformerConfig::with_vocabulary`].
    pub fn with_vocabulary(mut self, ids: impl IntoIterator<Item = u32>) -> Self {
        self.text = self.text.with_vocabulary(ids);
        self
    }

    /// Returns the width D of the joint embedding space.
    pub fn embed_dim(&self) -> usize {
        self.text.embed_dim
    }

    /// Computes the number of parameters without allocating them.
    pub fn num_params(&self) -> usize {
        self.vision.num_params() + self.text.num_params() + 1
    }

    /// Checks both towers and that their embeddings have the same width.
    ///
    /// # Errors
    /// Names the first invalid field.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.vision.validate().map_err(|e| e.within("vision"))?;
        self.text.validate().map_err(|e| e.within("text"))?;
        if self.vision.embed_dim != self.text.embed_dim {
            let expected = format!("must equal text.embed_dim = {}", self.text.embed_dim);
            return Err(ConfigError::new("vision.embed_dim", self.vision.embed_dim, expected));
        }
        Ok(())
    }

    /// Initializes a model with random weights and the temperature 0.07. The configuration must be valid, see
    /// [`validate`](Self::validate).
    pub fn init(&self, device: &Device) -> Clip {
        Clip {
            vision: self.vision.init(device),
            text: self.text.init(device),
            logit_scale: Param::from_tensor(Tensor::from_floats([(1f32 / 0.07).ln()], device)),
        }
    }
}

impl Clip {
    /// Class name on disk.
    pub const CLASS: &'static str = "Clip";

    /// Writes the model and its configuration to a directory, with transformers' tensor names.
    ///
    /// [`PretrainedClip::load`](crate::PretrainedClip::load) reads the directory.
    ///
    /// # Errors
    /// If a file cannot be written or a weight is not finite in `float_type`.
    pub fn save(&self, config: &ClipConfig, dir: impl AsRef<Path>, float_type: FloatType) -> Result<()> {
        let dir = dir.as_ref();
        let weights = dir.join(WEIGHTS_FILE);
        store::save_module_as(self, weights, float_type, &BTreeMap::new(), &clip_tensor_name)?;
        store::write_config(dir, Self::CLASS, config)
    }

    /// Computes the contrastive loss of a batch of pairs, see [`contrastive_loss`].
    ///
    /// # Shapes
    /// `pixels` `[B, 3, image_size, image_size]` (see [`preprocess`](crate::preprocess)), B captions -> `[1]`
    ///
    /// # Panics
    /// If the shapes do not match.
    pub fn loss(&self, pixels: Tensor<4>, captions: &TokenBatch, targets: Option<&[usize]>) -> Tensor<1> {
        let image_embed = self.vision.forward(pixels);
        let text_embed = self.text.forward(captions).pooled;
        contrastive_loss(image_embed, text_embed, self.logit_scale.val(), targets)
    }
}

#[cfg(test)]
mod tests;
