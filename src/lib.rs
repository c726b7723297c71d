//! unCLIP / DALL·E 2 in Rust: text in, image out, and every part of it trainable.
//!
//! ```no_run
//! use dalle2::{Device, Pipeline};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let pipeline = Pipeline::from_pretrained("models/emoji", &Device::default())?;
//! let generation = pipeline.generate("red apple")?;
//! generation.images[0].save("apple.png")?;
//! # Ok(())
//! # }
//! ```
//!
//! A caption goes through CLIP's text encoder, a *prior* draws a CLIP image embedding for it, a *decoder* draws an
//! image for the embedding, and *upsamplers* enlarge it (Ramesh et al. 2022, *Hierarchical Text-Conditional Image
//! Generation with CLIP Latents*). Any part can be your own: implement its trait and hand it to [`Pipeline::builder`].
//!
//! | crate | holds |
//! |---|---|
//! | [`core`] | diffusion, networks, images, text, data, training, storage, and the traits of the parts |
//! | [`clip`] | contrastive CLIP |
//! | [`prior`] | the priors |
//! | [`decoder`] | the decoder and the upsamplers |

mod builder;
mod diffusers;
mod event;
mod extend;
mod filter;
mod generate;
#[cfg(feature = "hub")]
mod hub;
mod manipulate;
mod on_demand;
mod pipeline;
mod pretrained;
mod request;

pub use builder::PipelineBuilder;
pub use burn::prelude::Device;
pub use dalle2_clip as clip;
pub use dalle2_core as core;
pub use dalle2_core::image::RgbImage;
pub use dalle2_core::{
    ConfigError, DiffusionOptions, Error, FloatType, LoadOptions, PriorOptions, Residency, Result, UpsamplerOptions,
    device, keep_memory,
};
pub use dalle2_decoder as decoder;
pub use dalle2_prior as prior;
pub use event::{Event, Stage};
pub use filter::{BlockList, ImageFilter, PromptFilter, SimilarityFilter, Verdict};
pub use generate::{Generation, StageTime};
#[cfg(feature = "hub")]
pub use hub::{Download, Hub};
pub use manipulate::{
    Borders, Canvas, Controls, Inpaint, Interpolate, Inversion, InvertOptions, NoisePath, PcaReconstructions, Source,
    StartNoise, TextDiff, Variations,
};
pub use pipeline::Pipeline;
pub use pretrained::install_part;
pub use request::GenerateRequest;

/// The program on the first page of the repository compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
