//! The traits of a pipeline's stages, and the options of sampling them.

mod component;
mod decoder;
mod image_encoder;
mod options;
mod pointers;
mod prior;
mod text_encoder;
mod upsampler;

pub use component::Component;
pub use decoder::Decoder;
pub use image_encoder::ImageEncoder;
pub use options::{DdimInversion, DiffusionOptions, PriorOptions, Tiling, UpsamplerOptions};
pub use prior::Prior;
pub use text_encoder::TextEncoder;
pub use upsampler::Upsampler;
