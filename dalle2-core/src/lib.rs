//! The foundation of all stages of `dalle2`.
//!
//! | module | holds |
//! |---|---|
//! | [`diffusion`] | noise schedules, prediction types, guidance, samplers, noise sources |
//! | [`nn`] | the hot operations and the network blocks that several models use |
//! | [`image`] | conversion between pixels and tensors, resizing, contact sheets |
//! | [`text`] | the CLIP byte-pair tokenizer |
//! | `train` | what a model and its batches offer a trainer (feature `train`) |
//! | [`store`] | strict safetensors storage with the configuration beside the weights |
//! | [`diffusers`] | what reading and writing the layout of diffusers has in common for all parts |
//! | [`metrics`] | metrics of embeddings and images |
//!
//! The crates for CLIP, the priors and the decoder never see one another: they meet in the conditioning types and
//! traits at the root of this crate ([`TextCondition`], [`TextEncoder`], [`ImageEncoder`], [`Prior`], [`Decoder`],
//! [`Upsampler`]), so your own implementation can replace any of them.

mod condition;
mod device;
pub mod diffusers;
pub mod diffusion;
mod error;
mod float_type;
pub mod image;
mod inpainting;
pub mod metrics;
mod network;
mod parts;
mod pca;
mod scale;
mod slerp;
mod step;
pub mod store;
pub mod text;
pub mod train;

pub use condition::{Captions, TextCondition, TokenMask};
pub use dalle2_kernels as nn;
pub use dalle2_kernels::on_pool;
pub use device::{device, keep_memory};
pub use error::{ConfigError, Error, ErrorKind, Result, ShapeMismatch, UnreadableTensor};
pub use float_type::FloatType;
pub use inpainting::Inpainting;
pub use network::{LoadOptions, Network, Reading, Residency, compute_type};
pub use parts::{
    Component, DdimInversion, Decoder, DiffusionOptions, ImageEncoder, Prior, PriorOptions, TextEncoder, Tiling,
    Upsampler, UpsamplerOptions,
};
pub use pca::{Components, EmbeddingPca};
pub use scale::EmbeddingScale;
pub use slerp::slerp;
pub use step::{StepEvent, StepHook};
