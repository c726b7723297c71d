//! Both towers and the learned temperature: what contrastive training sees.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Param;
use burn::prelude::*;
use dalle2_core::nn::Activation;
use dalle2_core::store::{self, CONFIG_FILE, WEIGHTS_FILE};
use dalle2_core::{ConfigError, Error, FloatType, Result};
use serde::{Deserialize, Serialize};

use crate::import::clip_tensor_name;
use crate::{
    TextTransformer, TextTransformerConfig, TokenBatch, VisionTransformer, VisionTransformerConfig, contrastive_loss,
};

pub(crate) const CLASS: &str = "Clip";

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
    /// For a few dozen concepts and minutes on a CPU: 32 px, embeddings of 64 components, 0.86 M parameters and 96
    /// for each token. Meant to be used with [`with_vocabulary`](Self::with_vocabulary).
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

    /// For the emoji: 64 px, embeddings of 128 components, 2.5 M parameters and 128 for each token. Meant to be used
    /// with [`with_vocabulary`](Self::with_vocabulary).
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

    /// [`tiny`](Self::tiny) in a form that transformers and diffusers can express: all tokens, and captions' tokens as wide
    /// as the embeddings. 4.5 M parameters, most of them the tokens'.
    pub fn portable() -> Self {
        let mut config = Self::tiny();
        config.text =
            TextTransformerConfig { activation: Activation::Gelu, ..TextTransformerConfig::new(32, [64, 4, 2], 64) };
        config
    }

    /// The preset called `name`.
    ///
    /// # Errors
    /// When there is none of that name; the message lists them.
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
        let found = published.into_iter().find(|(preset, _)| *preset == name);
        let named = "tiny, small, base, karlo, paper, emoji, portable";
        let found = found.ok_or_else(|| ConfigError::new("preset", name, format!("must be one of {named}, {known}")));
        Ok(found?.1)
    }

    /// Restricts the text tower's embedding, see [`TextTransformerConfig::with_vocabulary`].
    pub fn with_vocabulary(mut self, ids: impl IntoIterator<Item = u32>) -> Self {
        self.text = self.text.with_vocabulary(ids);
        self
    }

    /// Width D of the joint embedding space.
    pub fn embed_dim(&self) -> usize {
        self.text.embed_dim
    }

    /// Number of parameters, computed without allocating them.
    pub fn num_params(&self) -> usize {
        self.vision.num_params() + self.text.num_params() + 1
    }

    /// Checks both towers and that they embed into one space.
    ///
    /// # Errors
    /// Names the first field at fault.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.vision.validate().map_err(|e| e.within("vision"))?;
        self.text.validate().map_err(|e| e.within("text"))?;
        if self.vision.embed_dim != self.text.embed_dim {
            let expected = format!("must equal text.embed_dim = {}", self.text.embed_dim);
            return Err(ConfigError::new("vision.embed_dim", self.vision.embed_dim, expected));
        }
        Ok(())
    }

    /// A model with random weights and the temperature 0.07.
    ///
    /// # Panics
    /// When [`validate`](Self::validate) would fail.
    pub fn init(&self, device: &Device) -> Clip {
        Clip {
            vision: self.vision.init(device),
            text: self.text.init(device),
            logit_scale: Param::from_tensor(Tensor::from_floats([(1f32 / 0.07).ln()], device)),
        }
    }

    /// Writes this configuration and a model of it to a directory, under Hugging Face's tensor names.
    ///
    /// # Errors
    /// When a file cannot be written or a weight is not finite in `float_type`.
    pub fn save(&self, model: &Clip, dir: impl AsRef<Path>, float_type: FloatType) -> Result<()> {
        let dir = dir.as_ref();
        let weights = dir.join(WEIGHTS_FILE);
        store::save_module_as(model, weights, float_type, &BTreeMap::new(), &clip_tensor_name)?;
        store::write_config(dir, CLASS, self)
    }

    /// Reads a configuration and its model from a directory.
    ///
    /// # Errors
    /// When a file is missing or damaged, or the weights are not those of the configuration.
    pub fn load(dir: impl AsRef<Path>, device: &Device) -> Result<(Self, Clip)> {
        let dir = dir.as_ref();
        let config: Self = store::read_config(dir, CLASS)?;
        config.validate().map_err(|e| Error::format(dir.join(CONFIG_FILE), e.to_string()))?;
        let model = store::load_module_as(config.init(device), dir.join(WEIGHTS_FILE), &clip_tensor_name)?;
        Ok((config, model))
    }
}

impl Clip {
    /// The contrastive loss of a batch of pairs, see [`contrastive_loss`].
    ///
    /// # Shapes
    /// `pixels` `[B, 3, image_size, image_size]` (see [`preprocess`](crate::preprocess)), B captions -> `[1]`
    ///
    /// # Panics
    /// When the shapes do not fit.
    pub fn loss(&self, pixels: Tensor<4>, captions: &TokenBatch, targets: Option<&[usize]>) -> Tensor<1> {
        let image_embed = self.vision.forward(pixels);
        let text_embed = self.text.forward(captions).pooled;
        contrastive_loss(image_embed, text_embed, self.logit_scale.val(), targets)
    }
}

#[cfg(test)]
mod tests;
