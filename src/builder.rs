//! Composing a pipeline.

use std::path::Path;
use std::sync::Arc;

use burn::prelude::Device;
use dalle2_core::{Decoder, Error, ImageEncoder, LoadOptions, Prior, Result, TextEncoder, Upsampler};

use crate::{ImageFilter, Pipeline, PromptFilter, pretrained};

/// A builder of a [`Pipeline`], which refuses incompatible parts. A part that is set again replaces the first one.
#[derive(Default)]
pub struct PipelineBuilder {
    text_encoder: Option<Arc<dyn TextEncoder>>,
    image_encoder: Option<Arc<dyn ImageEncoder>>,
    prior: Option<Arc<dyn Prior>>,
    decoder: Option<Arc<dyn Decoder>>,
    upsamplers: Vec<Arc<dyn Upsampler>>,
    device: Option<Device>,
    prompt_filters: Vec<Arc<dyn PromptFilter>>,
    image_filters: Vec<Arc<dyn ImageFilter>>,
}

impl std::fmt::Debug for PipelineBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PipelineBuilder").field("upsamplers", &self.upsamplers.len()).finish_non_exhaustive()
    }
}

impl PipelineBuilder {
    /// Loads the parts of a pipeline directory, see [`Pipeline::from_pretrained_with`]; the parts need not be complete.
    ///
    /// # Errors
    /// If the directory is not a pipeline, or a part is missing or damaged.
    pub fn load(dir: impl AsRef<Path>, options: &LoadOptions) -> Result<Self> {
        pretrained::load(dir.as_ref(), options).map(|(builder, _)| builder)
    }

    pub(crate) fn from_pipeline(pipeline: Pipeline) -> Self {
        Self {
            text_encoder: Some(pipeline.text_encoder),
            image_encoder: pipeline.image_encoder,
            prior: pipeline.prior,
            decoder: Some(pipeline.decoder),
            upsamplers: pipeline.upsamplers,
            device: Some(pipeline.device),
            prompt_filters: pipeline.prompt_filters,
            image_filters: pipeline.image_filters,
        }
    }

    /// Sets the text encoder; required.
    pub fn text_encoder(mut self, part: impl TextEncoder + 'static) -> Self {
        self.text_encoder = Some(Arc::new(part));
        self
    }

    /// Sets the image encoder; required by operations on images.
    pub fn image_encoder(mut self, part: impl ImageEncoder + 'static) -> Self {
        self.image_encoder = Some(Arc::new(part));
        self
    }

    /// Sets the prior, which captions require. A pipeline without one needs an image encoder.
    pub fn prior(mut self, part: impl Prior + 'static) -> Self {
        self.prior = Some(Arc::new(part));
        self
    }

    /// Sets the decoder; required.
    pub fn decoder(mut self, part: impl Decoder + 'static) -> Self {
        self.decoder = Some(Arc::new(part));
        self
    }

    /// Appends an upsampler; upsamplers run in the order of their addition.
    pub fn upsampler(mut self, part: impl Upsampler + 'static) -> Self {
        self.upsamplers.push(Arc::new(part));
        self
    }

    /// Removes all upsamplers.
    pub fn without_upsamplers(mut self) -> Self {
        self.upsamplers.clear();
        self
    }

    /// Sets the device of the parts; [`Device::default`] if unset.
    pub fn device(mut self, device: &Device) -> Self {
        self.device = Some(device.clone());
        self
    }

    /// Checks that the required parts are present and compatible.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with every missing part and every incompatible pair, with both numbers.
    pub fn build(self) -> Result<Pipeline> {
        let mut faults = self.missing();
        faults.extend(self.incompatible());
        match (self.text_encoder, self.decoder) {
            (Some(text_encoder), Some(decoder)) if faults.is_empty() => Ok(Pipeline {
                text_encoder,
                image_encoder: self.image_encoder,
                prior: self.prior,
                decoder,
                upsamplers: self.upsamplers,
                device: self.device.unwrap_or_default(),
                index: None,
                prompt_filters: self.prompt_filters,
                image_filters: self.image_filters,
            }),
            _ => Err(Error::Mismatch(format!("these parts do not form a pipeline:\n  {}", faults.join("\n  ")))),
        }
    }

    fn missing(&self) -> Vec<String> {
        let no_embedding = self.prior.is_none() && self.image_encoder.is_none();
        let required = [
            ("text encoder", self.text_encoder.is_none()),
            ("prior (or, for variations of images, an image encoder)", no_embedding),
            ("decoder", self.decoder.is_none()),
        ];
        required.iter().filter(|(_, missing)| *missing).map(|(name, _)| format!("the {name} is missing")).collect()
    }

    fn incompatible(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut compare = |property: &str, left: (&str, usize), right: (&str, usize)| {
            if left.1 != right.1 {
                faults.push(format!("{property}: the {} has {}, the {} has {}", left.0, left.1, right.0, right.1));
            }
        };
        let (text, prior, decoder) = (self.text_encoder.as_deref(), self.prior.as_deref(), self.decoder.as_deref());
        if let (Some(text), Some(prior)) = (text, prior) {
            compare("embedding width", ("text encoder", text.embed_dim()), ("prior", prior.embed_dim()));
            compare("token width", ("text encoder", text.token_width()), ("prior", prior.token_width()));
            compare("context length", ("text encoder", text.context_length()), ("prior", prior.context_length()));
        }
        if let (Some(text), Some(decoder)) = (text, decoder) {
            compare("embedding width", ("text encoder", text.embed_dim()), ("decoder", decoder.embed_dim()));
            compare("token width", ("text encoder", text.token_width()), ("decoder", decoder.token_width()));
        }
        if let (Some(prior), Some(decoder)) = (prior, decoder) {
            compare("embedding width", ("prior", prior.embed_dim()), ("decoder", decoder.embed_dim()));
        }
        if let (Some(text), Some(image)) = (text, self.image_encoder.as_deref()) {
            compare("embedding width", ("text encoder", text.embed_dim()), ("image encoder", image.embed_dim()));
        }
        let mut source = decoder.map(|decoder| ("decoder".to_owned(), decoder.image_size()));
        for (i, upsampler) in self.upsamplers.iter().enumerate() {
            let name = format!("upsampler {}", i + 1);
            if let Some((from, size)) = &source {
                let input = format!("{name}'s input");
                compare("image size in pixels", (from, *size), (&input, upsampler.input_size()));
            }
            source = Some((name, upsampler.input_size() * upsampler.factor()));
        }
        faults
    }
}
