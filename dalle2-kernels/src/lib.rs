//! Tensor operations and network blocks that several models share.
//!
//! The networks of the workspace call these functions instead of Burn's layers, so that a faster kernel for a backend
//! replaces the operation everywhere. Parameters are in modules of Burn ([`burn::nn::Linear`], [`burn::nn::GroupNorm`], …)
//! or in [`LayerNorm`], which has the same parameter names as Burn's.
//!
//! | function | computes |
//! |---|---|
//! | [`silu`], [`gelu`], [`quick_gelu`] | activations |
//! | [`linear`], [`conv2d`] | linear and convolution layers |
//! | [`linear_add`], [`conv2d_add`], [`conv2d_resampled`] | the same, fused with a residual addition or resampling |
//! | [`resample()`] | nearest-neighbour upsampling and average pooling by two |
//! | [`embedding`] | embedding lookup |
//! | [`layer_norm`], [`group_norm`], [`group_norm_silu`], [`group_norm_film_silu`] | norms, fused with FiLM and SiLU |
//! | [`attention`] | scaled dot-product attention with a mask |
//! | [`split_heads`], [`merge_heads`], [`transpose`], [`swap_middle`], [`concat()`] | permutations and concatenation |
//! | [`l2_normalize`] | rows of unit length |
//! | [`causal_mask`], [`timestep_embedding`] | inputs of transformers and diffusion networks |
//! | [`cast_weights`] | 16-bit weights with f32 activations |
//! | [`Transformer`] | the pre-norm transformer of CLIP and the priors |

#![warn(unreachable_pub)]

mod activation;
mod attention;
mod axes;
mod cast;
mod conv;
mod embedding;
mod error;
mod kernels;
mod layer_norm;
mod linear;
mod mask;
mod norm;
mod pool;
mod resample;
mod transformer;

pub use activation::{gelu, quick_gelu, silu};
pub use attention::attention;
pub use axes::{concat, merge_heads, split_heads, swap_middle, transpose};
pub use cast::{CastWeights, cast_weights};
pub use conv::{conv2d, conv2d_add, conv2d_resampled};
pub use embedding::{embedding, timestep_embedding};
pub use error::ConfigError;
pub use kernels::{configure_allocator, is_cpu, set_kernels};
pub use layer_norm::{LayerNorm, LayerNormConfig, layer_norm};
pub use linear::{linear, linear_add};
pub use mask::causal_mask;
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
