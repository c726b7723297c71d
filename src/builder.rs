//! Putting a pipeline together.

use std::sync::Arc;

use burn::prelude::Device;
use dalle2_core::{Decoder, Error, ImageEncoder, Prior, Result, TextEncoder, Upsampler};

use crate::Pipeline;

/// Collects the parts of a [`Pipeline`] and refuses those that do not fit.
#[derive(Debug, Default)]
pub struct PipelineBuilder {
    text_encoder: Option<Arc<dyn TextEncoder>>,
    image_encoder: Option<Arc<dyn ImageEncoder>>,
    prior: Option<Arc<dyn Prior>>,
    decoder: Option<Arc<dyn Decoder>>,
    upsamplers: Vec<Arc<dyn Upsampler>>,
    device: Option<Device>,
}

impl PipelineBuilder {
    /// The encoder of captions; required.
    pub fn text_encoder(mut self, part: impl TextEncoder + 'static) -> Self {
        self.text_encoder = Some(Arc::new(part));
        self
    }

    /// The encoder of images; what reads images needs it.
    pub fn image_encoder(mut self, part: impl ImageEncoder + 'static) -> Self {
        self.image_encoder = Some(Arc::new(part));
        self
    }

    /// The prior; required for drawing from a caption. Without one, the pipeline needs an encoder of images.
    pub fn prior(mut self, part: impl Prior + 'static) -> Self {
        self.prior = Some(Arc::new(part));
        self
    }

    /// The decoder; required.
    pub fn decoder(mut self, part: impl Decoder + 'static) -> Self {
        self.decoder = Some(Arc::new(part));
        self
    }

    /// The next upsampler; they run in the order in which they are added.
    pub fn upsampler(mut self, part: impl Upsampler + 'static) -> Self {
        self.upsamplers.push(Arc::new(part));
        self
    }

    /// The device that the parts are on; [`Device::default`] if not set.
    pub fn device(mut self, device: &Device) -> Self {
        self.device = Some(device.clone());
        self
    }

    /// Checks that every part is there and fits its neighbours.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with every part that is missing and every pair that does not fit, with both numbers.
    pub fn build(self) -> Result<Pipeline> {
        let mut faults = Vec::new();
        let mut fit = |what: &str, left: (&str, usize), right: (&str, usize)| {
            if left.1 != right.1 {
                faults.push(format!("{what}: the {} has {}, the {} has {}", left.0, left.1, right.0, right.1));
            }
        };
        let (text, prior, decoder) = (self.text_encoder.as_deref(), self.prior.as_deref(), self.decoder.as_deref());
        if let (Some(text), Some(prior)) = (text, prior) {
            fit("embedding width", ("text encoder", text.embed_dim()), ("prior", prior.embed_dim()));
            fit("token width", ("text encoder", text.token_width()), ("prior", prior.token_width()));
            fit("context length", ("text encoder", text.context_length()), ("prior", prior.context_length()));
        }
        if let (Some(text), Some(decoder)) = (text, decoder) {
            fit("embedding width", ("text encoder", text.embed_dim()), ("decoder", decoder.embed_dim()));
            fit("token width", ("text encoder", text.token_width()), ("decoder", decoder.token_width()));
        }
        if let (Some(prior), Some(decoder)) = (prior, decoder) {
            fit("embedding width", ("prior", prior.embed_dim()), ("decoder", decoder.embed_dim()));
        }
        if let (Some(text), Some(image)) = (text, self.image_encoder.as_deref()) {
            fit("embedding width", ("text encoder", text.embed_dim()), ("image encoder", image.embed_dim()));
        }
        let mut source = decoder.map(|decoder| ("decoder".to_owned(), decoder.image_size()));
        for (i, upsampler) in self.upsamplers.iter().enumerate() {
            let name = format!("upsampler {}", i + 1);
            if let Some((from, size)) = &source {
                fit("image size in pixels", (from, *size), (&format!("{name}'s input"), upsampler.input_size()));
            }
            source = Some((name, upsampler.input_size() * upsampler.factor()));
        }
        let no_embedding = prior.is_none() && self.image_encoder.is_none();
        for (name, missing) in [
            ("text encoder", text.is_none()),
            ("prior (or, for variations of images, an image encoder)", no_embedding),
            ("decoder", decoder.is_none()),
        ] {
            if missing {
                faults.push(format!("the {name} is missing"));
            }
        }
        match (self.text_encoder, self.decoder) {
            (Some(text_encoder), Some(decoder)) if faults.is_empty() => Ok(Pipeline {
                text_encoder,
                image_encoder: self.image_encoder,
                prior: self.prior,
                decoder,
                upsamplers: self.upsamplers,
                device: self.device.unwrap_or_default(),
                index: None,
                prompt_filters: Vec::new(),
                image_filters: Vec::new(),
            }),
            _ => Err(Error::Mismatch(format!("these parts make no pipeline:\n  {}", faults.join("\n  ")))),
        }
    }
}
