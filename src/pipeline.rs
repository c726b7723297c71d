//! The pipeline.

use std::sync::Arc;

use burn::prelude::Device;
use dalle2_core::{Decoder, ImageEncoder, Prior, TextEncoder, Upsampler};
use serde_json::{Map, Value};

use crate::{ImageFilter, PipelineBuilder, PromptFilter};

/// A caption's way to an image: text encoder, prior, decoder, upsamplers. Without a prior, it is an image's way to its
/// variations.
///
/// Cloning is cheap, the parts are shared, and generating does not change them, so threads can use one pipeline.
#[derive(Debug, Clone)]
pub struct Pipeline {
    pub(crate) text_encoder: Arc<dyn TextEncoder>,
    pub(crate) image_encoder: Option<Arc<dyn ImageEncoder>>,
    pub(crate) prior: Option<Arc<dyn Prior>>,
    pub(crate) decoder: Arc<dyn Decoder>,
    pub(crate) upsamplers: Vec<Arc<dyn Upsampler>>,
    pub(crate) device: Device,
    /// `model_index.json` of the diffusers directory that it was read from, to be written again as it was.
    pub(crate) index: Option<Arc<Map<String, Value>>>,
    pub(crate) prompt_filters: Vec<Arc<dyn PromptFilter>>,
    pub(crate) image_filters: Vec<Arc<dyn ImageFilter>>,
}

impl Pipeline {
    /// Starts to put a pipeline together from parts.
    pub fn builder() -> PipelineBuilder {
        PipelineBuilder::default()
    }

    /// The encoder of captions.
    pub fn text_encoder(&self) -> &dyn TextEncoder {
        &*self.text_encoder
    }

    /// The encoder of images, if there is one.
    pub fn image_encoder(&self) -> Option<&dyn ImageEncoder> {
        self.image_encoder.as_deref()
    }

    /// The prior; a pipeline that makes variations of images only has none.
    pub fn prior(&self) -> Option<&dyn Prior> {
        self.prior.as_deref()
    }

    /// The decoder.
    pub fn decoder(&self) -> &dyn Decoder {
        &*self.decoder
    }

    /// The upsamplers in their order.
    pub fn upsamplers(&self) -> impl ExactSizeIterator<Item = &dyn Upsampler> {
        self.upsamplers.iter().map(|upsampler| &**upsampler)
    }

    /// The device that the parts are on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Side in pixels of the images it draws.
    pub fn image_size(&self) -> usize {
        self.upsamplers.iter().fold(self.decoder.image_size(), |size, upsampler| size * upsampler.factor())
    }
}
