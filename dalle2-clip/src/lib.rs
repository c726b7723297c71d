//! CLIP for `dalle2`: the joint space of images and captions that the other stages work in.
//!
//! Two towers embed images and captions so that an image and its caption point the same way (Radford et al. 2021,
//! arXiv 2103.00020). [`Clip`] holds both and is what training sees; [`ClipTextEncoder`] and [`ClipImageEncoder`] are
//! the trained halves as the stages of a pipeline use them.
//!
//! | item | is |
//! |---|---|
//! | [`VisionTransformer`], [`TextTransformer`] | the towers |
//! | [`ClipConfig`] | both configurations, with presets |
//! | [`contrastive_loss`] | the symmetric loss, aware of captions that occur twice in a batch |
//! | [`eval`] | zero-shot classification and retrieval |
//! | [`PretrainedClip`] | CLIPs of others: Hugging Face directories, OpenAI's files, open_clip's checkpoints |
//! | [`ImageProcessor`] | their image preprocessing, equal to Pillow's to the last bit |
//! | `train` | the training task (feature `train`) |
//!
//! Files carry the tensor names of Hugging Face's CLIP, so weights travel both ways.
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
//! let (text, image) = (ClipTextEncoder::from_clip(&config, &clip)?, ClipImageEncoder::from_clip(&config, &clip)?);
//!
//! let labels = eval::embed_labels(&text, &["red apple", "blue car"], &["{}", "a picture of a {}"])?;
//! let images = image.encode(Tensor::zeros([3, 3, 48, 64], &device))?; // three grey pictures
//! let answers = eval::classify(images, labels, 1)?;
//! assert_eq!(answers.len(), 3);
//! # Ok(())
//! # }
//! ```

mod diffusers;
pub mod eval;
mod image_encoder;
mod import;
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
pub use import::{clip_tensor_name, text_tensor_name, vision_tensor_name};
pub use loss::{LossShare, MAX_LOGIT_SCALE, Objective, contrastive_loss};
pub use model::{Clip, ClipConfig};
pub use preprocess::preprocess;
pub use pretrained::{ImportOptions, PretrainedClip};
pub use processor::{Centre, Filter, ImageProcessor, ImageSize};
pub use text::{ReadAt, TextOutput, TextTransformer, TextTransformerConfig, TokenBatch};
pub use text_encoder::ClipTextEncoder;
pub use vision::{VisionTransformer, VisionTransformerConfig};
