//! The recipe for the priors: CLIP image embeddings from captions.
//!
//! A prior trains from captioned images, which a frozen CLIP embeds batch by batch, or from an
//! [`EmbeddingSet`](crate::data::EmbeddingSet) that was embedded before.

mod hooks;
mod presets;
mod recipe;
mod source;

pub use hooks::{AsPrior, PriorHooks, ReferencePairs};
pub use recipe::{DiffusionPriorOptions, PriorData, PriorKind, Recipe};
pub use source::{AutoregressiveSource, PairSource, PriorSource};
