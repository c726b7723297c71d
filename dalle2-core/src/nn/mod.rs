//! The hot operations and the network blocks that several models use.

mod composed;
mod embedding;
mod mask;
mod transformer;

pub use composed::{attention, conv2d, gelu, l2_normalize, layer_norm, linear, quick_gelu};
pub use embedding::timestep_embedding;
pub use mask::causal_mask;
pub use transformer::{Activation, Mlp, SelfAttention, Transformer, TransformerBlock, TransformerConfig};
