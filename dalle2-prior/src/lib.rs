//! The priors of `dalle2`: P(z_i | y), from a caption to a CLIP image embedding (DALL·E 2, section 2.2).
//!
//! | type | is |
//! |---|---|
//! | [`DiffusionPrior`] | a [`dalle2_core::Prior`] that denoises the embedding with a causal transformer |
//! | [`PriorNetwork`] | the transformer under it |
//! | [`AutoregressivePrior`] | a [`dalle2_core::Prior`] that draws the embedding's principal components one by one |
//! | [`AutoregressiveNetwork`], [`EmbeddingQuantizer`] | the transformer under it, and what turns embeddings into tokens |
//! | [`TrainingCost`] | what a training step costs, for comparing the two |
//! | `train` | the training steps of both (feature `train`) |
//!
//! A prior of your own implements [`dalle2_core::Prior`] and works in the same pipeline.
//!
//! ```
//! use burn::prelude::*;
//! use dalle2_core::{Captions, Prior, PriorOptions, TextCondition, TokenMask, diffusion::SeededNoise};
//! use dalle2_prior::{DiffusionPrior, DiffusionPriorConfig};
//!
//! # fn main() -> dalle2_core::Result<()> {
//! let device = Device::flex();
//! let config = DiffusionPriorConfig::tiny(32, 16, 8); // embeddings of 32, token encodings of 16, 8 tokens
//! let prior = DiffusionPrior::new(config.clone(), config.init(&device))?; // or DiffusionPrior::load(dir, &device)?
//! let caption = |length| TextCondition {
//!     pooled: Tensor::ones([1, 32], &device),
//!     tokens: Tensor::ones([1, 8, 16], &device),
//!     mask: TokenMask::from_lengths(&[length], 8, &device),
//! };
//! let options = PriorOptions { steps: Some(4), ..Default::default() };
//! let mut noise = SeededNoise::new(&[7], 0);
//! let z = prior.sample(Captions { text: &caption(5), null: &caption(2) }, &options, &mut noise, &mut |_| Ok(()))?;
//! assert_eq!(z.dims(), [1, 32]);
//! # Ok(())
//! # }
//! ```

mod autoregressive;
mod budget;
mod cache;
mod caption;
mod diffusion;
mod import;
pub mod train;

pub use autoregressive::{
    AutoregressiveNetwork, AutoregressivePrior, AutoregressivePriorConfig, AutoregressiveState, EmbeddingQuantizer,
    QuantizerOptions,
};
pub use budget::TrainingCost;
pub use diffusion::{DiffusionPrior, DiffusionPriorConfig, Prefix, PriorNetwork};
