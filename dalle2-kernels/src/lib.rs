//! The operations where the time goes, in one place, and the network blocks that several models use.
//!
//! Every network of the workspace calls these free functions instead of Burn's own ones, so that a faster kernel for
//! one backend replaces them once. Parameters stay in Burn's modules ([`burn::nn::Linear`], [`burn::nn::GroupNorm`],
//! …), so records, visitors and optimisers know nothing of this module.
//!
//! | function | computes |
//! |---|---|
//! | [`silu`], [`gelu`], [`quick_gelu`] | activations |
//! | [`linear`], [`conv2d`] | products with weights |
//! | [`linear_onto`], [`conv2d_onto`], [`conv2d_resampled`] | the same with a sum or a change of resolution folded in |
//! | [`resample()`] | a change of resolution by two |
//! | [`embedding`] | rows of a table |
//! | [`layer_norm`], [`group_norm`], [`group_norm_silu`], [`group_norm_film_silu`] | normalisation, fused with what follows it |
//! | [`attention`] | scaled dot-product attention with a mask |
//! | [`split_heads`], [`merge_heads`], [`transpose`], [`swap_middle`], [`concat()`] | copies in another order |
//! | [`l2_normalize`] | rows to unit length |
//! | [`causal_mask`], [`timestep_embedding`] | inputs of transformers and diffusion networks |
//! | [`cast_weights`] | weights of 16 bits with everything else in f32 |
//! | [`Transformer`] | the pre-norm transformer of CLIP and the priors |

mod activation;
mod attention;
mod axes;
mod conv;
mod embedding;
mod error;
mod kernels;
mod layer_norm;
mod linear;
mod mask;
mod cast;
mod norm;
mod pool;
mod resample;
mod transformer;

pub use activation::{gelu, quick_gelu, silu};
pub use attention::attention;
pub use axes::{concat, merge_heads, split_heads, swap_middle, transpose};
pub use conv::{conv2d, conv2d_onto, conv2d_resampled};
pub use embedding::{embedding, timestep_embedding};
pub use error::ConfigError;
pub use kernels::{is_cpu, keep_freed, kernels_enabled, set_kernels};
pub use layer_norm::{LayerNorm, LayerNormConfig, layer_norm};
pub use linear::{linear, linear_onto};
pub use mask::causal_mask;
pub use cast::{CastWeights, cast_weights};
pub use norm::{group_norm, group_norm_film_silu, group_norm_silu, l2_normalize};
pub use pool::on_pool;
pub use resample::{Resample, resample};
pub use transformer::{Activation, Mlp, SelfAttention, Transformer, TransformerBlock, TransformerConfig};

#[cfg(test)]
mod property_tests;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
