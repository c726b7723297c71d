//! Attention over pixels and context tokens (GLIDE, section 4.1): keys and values are `[context tokens; pixels]`.

use burn::nn::{GroupNorm, GroupNormConfig, Initializer, Linear, LinearConfig};
use burn::prelude::*;
use dalle2_core::nn::{attention, concat, group_norm, linear, merge_heads, split_heads, transpose};

use super::UNetConfig;

/// Keys and values of the context tokens for one attention block, the same at every sampling step.
#[derive(Debug, Clone)]
pub struct ContextCache {
    /// `[B, heads, S, head_dim]`
    key: Tensor<4>,
    /// `[B, heads, S, head_dim]`
    value: Tensor<4>,
}

/// Multi-head attention with a residual connection and a zero-initialised output projection.
#[derive(Module, Debug)]
pub struct AttentionBlock {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    add_k_proj: Option<Linear>,
    add_v_proj: Option<Linear>,
    to_out: Linear,
    n_heads: usize,
}

impl AttentionBlock {
    pub(super) fn new(config: &UNetConfig, channels: usize, head_dim: usize, device: &Device) -> Self {
        let proj = || LinearConfig::new(channels, channels).init(device);
        let context = || config.context_dim.map(|d| LinearConfig::new(d, channels).init(device));
        let mut to_out: Linear =
            LinearConfig::new(channels, channels).with_initializer(Initializer::Zeros).init(device);
        to_out.bias = Some(Initializer::Zeros.init([channels], device));
        Self {
            group_norm: GroupNormConfig::new(config.n_groups, channels).init(device),
            to_q: proj(),
            to_k: proj(),
            to_v: proj(),
            add_k_proj: context(),
            add_v_proj: context(),
            to_out,
            n_heads: channels / head_dim,
        }
    }

    /// Projects the context tokens once for all steps; `None` for a network without context.
    ///
    /// # Shapes
    /// `context: [B, S, context_dim]`
    pub fn cache(&self, context: Tensor<3>) -> Option<ContextCache> {
        let (key, value) = (self.add_k_proj.as_ref()?, self.add_v_proj.as_ref()?);
        Some(ContextCache {
            key: self.split_heads(linear(key, context.clone())),
            value: self.split_heads(linear(value, context)),
        })
    }

    /// Applies the block. `mask` is true where a key is masked out.
    ///
    /// # Shapes
    /// `x: [B, C, H, W]`, `mask: [B, 1, 1, S + H*W]` -> `[B, C, H, W]`
    pub fn forward(&self, x: Tensor<4>, context: Option<&ContextCache>, mask: Option<&Tensor<4, Bool>>) -> Tensor<4> {
        let [b, c, h, w] = x.dims();
        let pixels = transpose(group_norm(&self.group_norm, x.clone()).reshape([b, c, h * w])); // -> [B, H*W, C]
        let query = self.split_heads(linear(&self.to_q, pixels.clone()));
        let mut key = self.split_heads(linear(&self.to_k, pixels.clone()));
        let mut value = self.split_heads(linear(&self.to_v, pixels));
        if let Some(context) = context {
            key = concat(context.key.clone(), key, 2);
            value = concat(context.value.clone(), value, 2);
        }
        let keys = key.dims()[2];
        let mask = mask.map(|mask| mask.clone().expand([b, 1, h * w, keys]));
        let out = attention(query, key, value, mask); // [B, heads, H*W, head_dim]
        let out = linear(&self.to_out, merge_heads(out)); // [B, H*W, C]
        x + transpose(out).reshape([b, c, h, w])
    }

    /// `[B, S, C]` -> `[B, heads, S, head_dim]`
    fn split_heads(&self, x: Tensor<3>) -> Tensor<4> {
        split_heads(x, self.n_heads)
    }
}
