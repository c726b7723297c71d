//! The model as the page sees it.

use dalle2::Pipeline;
use serde::Serialize;

use super::limits::Limits;

/// The model and the bounds of requests.
#[derive(Debug, Clone, Serialize)]
pub struct Model {
    /// As it was named at the start.
    pub name: String,
    pub software: &'static str,
    /// Sides of the images in pixels: the decoder's and each upsampler's.
    pub sizes: Vec<usize>,
    /// Whether the model has a prior, which captions need.
    pub captions: bool,
    /// Whether the model has an image encoder, which images need.
    pub images: bool,
    pub limits: Limits,
}

impl Model {
    pub fn of(pipeline: &Pipeline, name: String) -> Self {
        let mut sizes = vec![pipeline.decoder().image_size()];
        sizes.extend(pipeline.upsamplers().scan(sizes[0], |size, upsampler| {
            *size *= upsampler.factor();
            Some(*size)
        }));
        Self {
            name,
            software: concat!("dalle2 ", env!("CARGO_PKG_VERSION")),
            sizes,
            captions: pipeline.prior().is_some(),
            images: pipeline.image_encoder().is_some(),
            limits: Limits::ALL,
        }
    }
}
