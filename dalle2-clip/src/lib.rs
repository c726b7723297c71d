//! CLIP for `dalle2`: the joint embedding space of images and captions (Radford et al. 2021, arXiv 2103.00020).
//!
//! [`Clip`] has both towers and is trained as one model; [`ClipTextEncoder`] and [`ClipImageEncoder`] are the trained
//! towers as components of a pipeline.
//!
//! | item | purpose |
//! |---|---|
//! | [`VisionTransformer`], [`TextTransformer`] | the towers |
//! | [`ClipConfig`] | both configurations, with presets |
//! | [`contrastive_loss`] | the symmetric loss, with repeated captions in a batch as matches |
//! | [`eval`] | zero-shot classification and retrieval |
//! | [`PretrainedClip`] | checkpoints of transformers, OpenAI and open_clip |
//! | [`ImageProcessor`] | their image preprocessing, equal to Pillow's to the last bit |
//! | [`train`] | the training task |
//!
//! Files have the tensor names of Hugging Face's CLIP, so that both libraries read them.
//!
//! ```
//! use burn::prelude::*;
//! use dalle2_clip::{ClipConfig, ClipImageEncoder, ClipTextEncoder, eval};
//! use dalle2_core::ImageEncoder;
//!
//! # fn main() -> dalle2_core::Result<()> {
//! let device = Device::flex();
//! let config = ClipConfig::tiny(); // or ClipTextEncoder::load("text_encoder", &device)?
//! let clip = config.init(&device);
//! let text = ClipTextEncoder::new(config.text, &clip.text)?;
//! let image = ClipImageEncoder::new(config.vision, &clip.vision)?;
//!
//! let labels = eval::embed_labels(&text, &["red apple", "blue car"], &["{}", "a photo of a {}"])?;
//! let images = image.encode(Tensor::zeros([3, 3, 48, 64], &device))?; // three grey images
//! let answers = eval::classify(images, labels, 1)?;
//! assert_eq!(answers.len(), 3);
//! # Ok(())
//! # }
//! ```

#![warn(unreachable_pub)]

mod diffusers;
pub mod eval;
mod image_encoder;
mod import;
mod limits;
mod loss;
mod model;
mod preprocess;
mod pretrained;
mod processor;
mod text;
mod text_encoder;
pub mod train;
mod vision;

pub use image_encoder::ClipImageEncoder;
pub use loss::contrastive_loss;
pub use model::{Clip, ClipConfig};
pub use preprocess::preprocess;
pub use pretrained::{ImportOptions, PretrainedClip};
pub use processor::{ImageProcessor, ImageSize, Resampling};
pub use text::{ReadAt, TextOutput, TextTransformer, TextTransformerConfig, TokenBatch};
pub use text_encoder::ClipTextEncoder;
pub use vision::{VisionTransformer, VisionTransformerConfig};
