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
//! CLIP's text encoder encodes a caption, a *prior* samples a CLIP image embedding for it, a *decoder* samples an image for
//! the embedding, and *upsamplers* enlarge it (Ramesh et al. 2022, *Hierarchical Text-Conditional Image Generation with CLIP
//! Latents*). Any part can be your own: implement its trait and pass it to [`Pipeline::builder`] or
//! [`Pipeline::to_builder`]. Burn and `image` are re-exported, so a program needs no other dependency.
//!
//! | module | contents |
//! |---|---|
//! | [`base`] | diffusion, networks, images, text, weights on disk |
//! | [`clip`] | contrastive CLIP |
//! | [`prior`] | the priors |
//! | [`decoder`] | the decoder and the upsamplers |
#![warn(unreachable_pub)]

mod builder;
mod controls;
mod diffusers;
mod event;
mod filter;
mod generation;
#[cfg(feature = "hub")]
mod hub;
mod manipulate;
mod on_demand;
mod pipeline;
mod plan;
mod pretrained;
mod request;
mod run;

pub use builder::PipelineBuilder;
pub use burn::prelude::Device;
pub use burn::{self, Tensor};
pub use controls::Controls;
pub use dalle2_clip as clip;
pub use dalle2_core as base;
pub use dalle2_core::diffusion::{NoiseSource, Sampler, Spacing};
pub use dalle2_core::image::{Mask, RgbImage};
pub use dalle2_core::store::PipelineDir;
pub use dalle2_core::{
    Captions, Component, ConfigError, Decoder, DiffusionOptions, Error, ErrorKind, FloatType, ImageEncoder,
    LoadOptions, Prior, PriorOptions, Residency, Result, StepEvent, StepHook, TextCondition, TextEncoder, Upsampler,
    UpsamplerOptions, device, keep_memory,
};
pub use dalle2_decoder as decoder;
pub use dalle2_prior as prior;
pub use event::{Event, Stage};
pub use filter::{BlockList, ImageFilter, PromptFilter, SimilarityFilter, Verdict};
pub use generation::{Generation, StageTime};
#[cfg(feature = "hub")]
pub use hub::{Download, Hub};
pub use image;
pub use manipulate::{
    Borders, Canvas, Generate, Inpaint, Interpolate, Inversion, Invert, Mix, NoisePath, Operation, Outpaint,
    PcaReconstructions, Source, StartNoise, TextDiff, Vary,
};
pub use pipeline::Pipeline;
pub use plan::PlannedStage;
pub use request::GenerateRequest;

/// The program on the first page of the repository compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
