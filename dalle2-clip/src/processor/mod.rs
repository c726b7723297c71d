//! The image processor of a checkpoint, equal to Pillow's to the last bit: `preprocessor_config.json`.

mod apply;
mod config;
mod pillow;

pub(crate) use config::CropRounding;
pub use config::{ImageProcessor, ImageSize};
pub use pillow::Resampling;
