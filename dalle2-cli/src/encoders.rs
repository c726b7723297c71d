//! The two encoders of CLIP, from a pipeline directory or a published CLIP checkpoint.

use std::path::Path;

use anyhow::{Context, Result};
use burn::prelude::*;
use clap::ValueEnum;
use dalle2::base::image::to_tensor;
use dalle2::base::nn::Activation;
use dalle2::base::{ImageEncoder, TextEncoder};
use dalle2::clip::{ClipImageEncoder, ClipTextEncoder, ImportOptions, PretrainedClip};
use dalle2::{Device, LoadOptions, Pipeline, Residency};

/// Factor on the cosines for checkpoints without their own: the upper bound in CLIP training.
const LOGIT_SCALE: f32 = 100.0;

/// Nonlinearity of a state dict that does not record it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Nonlinearity {
    /// OpenAI's weights
    QuickGelu,
    /// Most of open_clip's weights
    Gelu,
}

/// Both encoders, and the factor on their cosines.
pub struct Encoders {
    parts: Parts,
    /// Factor on the cosines before the softmax.
    pub logit_scale: f32,
}

enum Parts {
    Pipeline(Box<Pipeline>),
    Clip(Box<(ClipTextEncoder, ClipImageEncoder)>),
}

impl Encoders {
    /// Loads both from a pipeline directory, a directory of transformers or open_clip, or a state dict.
    pub fn load(model: &Path, nonlinearity: Option<Nonlinearity>, device: &Device) -> Result<Self> {
        if model.join("model_index.json").is_file() {
            // Only the encoders are loaded.
            let options = LoadOptions::new(device).residency(Residency::OneStage);
            let pipeline = Pipeline::from_pretrained_with(model, &options)?;
            let has_images = pipeline.image_encoder().is_some();
            anyhow::ensure!(has_images, "{} lacks an image encoder: choose another model", model.display());
            return Ok(Self { parts: Parts::Pipeline(Box::new(pipeline)), logit_scale: LOGIT_SCALE });
        }
        let activation = nonlinearity.map(|nonlinearity| match nonlinearity {
            Nonlinearity::QuickGelu => Activation::QuickGelu,
            Nonlinearity::Gelu => Activation::Gelu,
        });
        let clip = PretrainedClip::load(model, &ImportOptions { activation, architecture: None }, device)?;
        let logit_scale = clip.model.logit_scale.val().exp().into_scalar::<f32>();
        Ok(Self { parts: Parts::Clip(Box::new(clip.into_encoders()?)), logit_scale })
    }

    /// The encoder of captions.
    pub fn text(&self) -> &dyn TextEncoder {
        match &self.parts {
            Parts::Pipeline(pipeline) => pipeline.text_encoder(),
            Parts::Clip(encoders) => &encoders.0,
        }
    }

    /// Embeds an image file: `[1, D]`.
    pub fn embed(&self, file: &Path, device: &Device) -> Result<Tensor<2>> {
        let image = image::open(file).with_context(|| format!("cannot read the image {}", file.display()))?;
        let encoder: &dyn ImageEncoder = match &self.parts {
            Parts::Pipeline(pipeline) => pipeline.image_encoder().context("the pipeline lacks an image encoder")?,
            Parts::Clip(encoders) => &encoders.1,
        };
        Ok(encoder.encode(to_tensor(&[image.to_rgb8()], device)?)?)
    }
}
