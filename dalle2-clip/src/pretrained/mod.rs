//! Reads and writes CLIP checkpoints: this library's, transformers', OpenAI's and open_clip's.

mod clip;
mod encoders;
mod open_clip;
mod openai;
mod presets;
mod transformers;

pub use clip::{ImportOptions, PretrainedClip};
pub(crate) use encoders::{load_image_encoder, load_text_encoder};
