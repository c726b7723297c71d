//! Recipes: what it takes to train each part of a model on one's own data.
//!
//! | recipe | trains | needs |
//! |---|---|---|
//! | [`clip`] | image and text encoder | captioned images |
//! | [`prior`] | diffusion or autoregressive prior | captioned images and a trained CLIP, or embedded pairs |
//! | [`decoder`] | decoder, optionally for inpainting | captioned images and a trained CLIP |
//! | [`upsampler`] | an upsampler of the cascade | images |
//!
//! All of them take [`RecipeArgs`]: a [`Preset`] and changes to it. A run writes `OUT/PART/` (configuration, checkpoints,
//! metrics, samples) and installs the part into `OUT/export/`, which is a pipeline directory. The images come from any
//! [`TrainData`]; [`ImageData`] reads folders, index files and shards.
//!
//! ```
//! use std::sync::Arc;
//!
//! use dalle2_train::recipes::{ImageData, Preset, RecipeArgs, TrainData, clip, decoder, prior, upsampler};
//! use dalle2_train::{DisplayMode, RunOptions};
//!
//! # fn write_images(dir: &std::path::Path) {
//! #     for (i, name) in ["red", "green", "blue"].into_iter().enumerate() {
//! #         let mut pixel = [0u8; 3];
//! #         pixel[i] = 255;
//! #         let image = dalle2_core::image::RgbImage::from_pixel(32, 32, image::Rgb(pixel));
//! #         dalle2_core::image::save_png(&image, &dir.join(format!("{name}.png"))).unwrap();
//! #         std::fs::write(dir.join(format!("{name}.txt")), format!("a {name} square")).unwrap();
//! #     }
//! # }
//! # fn main() -> dalle2_core::Result<()> {
//! # let (photos, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
//! # write_images(photos.path());
//! # let (photos, out) = (photos.path().to_str().unwrap(), out.path());
//! let data: Arc<dyn TrainData> = Arc::new(ImageData::open(&[photos], None)?);
//! let session = RunOptions { display: DisplayMode::Quiet, ..Default::default() };
//! let args = RecipeArgs::new(Preset::Tiny, out).batch_size(3).steps(1).device("flex").session(session);
//!
//! let outcome = clip::Recipe::new(args.clone()).run(data.clone())?;
//! println!("{outcome}");
//! # if false {
//! prior::Recipe::new(args.clone()).run(&prior::PriorData::Images(data.clone()))?;
//! decoder::Recipe::new(args.clone().set("train.learning_rate=5e-4")).run(data.clone())?;
//! upsampler::Recipe::new(args).run(data)?;
//! # }
//! // Now `out/export` is a pipeline: `Pipeline::from_pretrained(out.join("export"), &device)`.
//! assert!(out.join("export/text_encoder/model.safetensors").is_file());
//! # Ok(())
//! # }
//! ```

mod args;
pub mod clip;
mod config;
mod data;
pub mod decoder;
mod embed;
mod frozen;
pub mod prior;
mod run;
mod samples;
pub mod upsampler;
mod validation;

pub use args::{Outcome, Preset, RecipeArgs, TrainSummary};
pub use config::{ModelConfig, NoOptions, PartOptions, RunConfig};
pub use data::{ImageData, TrainData, TrainItem, spread_items};
pub use embed::{CLIP_JITTER, EmbedJob, Pair, PairImages, PairSplits, Variations};
pub use frozen::{ClipSizes, EncodedBatch, FrozenClip};
pub use samples::{GRID_SIZE, continue_sampling, save_grid};
pub use validation::Validation;
