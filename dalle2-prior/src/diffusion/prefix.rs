//! Keys and values of the tokens that stay the same while a causal transformer is asked again and again.
//!
//! Under a causal mask the caption's tokens never read the tokens of a diffusion step, so their keys and values in
//! every layer are computed once per generation.

use burn::nn::Linear;
use burn::prelude::*;
use dalle2_core::nn::{Transformer, TransformerBlock, attention, layer_norm, linear};

/// Keys and values of a prefix in every layer, and what the tokens after it may read.
#[derive(Debug, Clone)]
pub struct Prefix {
    /// Per layer, `[B, heads, P, d_model / heads]` each.
    layers: Vec<(Tensor<4>, Tensor<4>)>,
    /// `[B, 1, N, P + N]` for N tokens after the prefix.
    mask: Tensor<4, Bool>,
    n_heads: usize,
}

impl Prefix {
    /// Runs the first P of the N + P tokens that `mask` describes.
    ///
    /// # Shapes
    /// - tokens: `[B, P, d_model]`
    /// - mask: `[B, 1, P + N, P + N]`, causal, `true` = masked out
    pub(super) fn new(transformer: &Transformer, n_heads: usize, tokens: Tensor<3>, mask: Tensor<4, Bool>) -> Self {
        let (prefix, total) = (tokens.dims()[1], mask.dims()[3]);
        let own_mask = mask.clone().narrow(2, 0, prefix).narrow(3, 0, prefix);
        let mut layers = Vec::with_capacity(transformer.layers.len());
        let mut hidden = tokens;
        for block in &transformer.layers {
            layers.push(keys_and_values(block, layer_norm(&block.norm1, hidden.clone()), n_heads));
            hidden = block.forward(hidden, Some(own_mask.clone()));
        }
        Self { layers, mask: mask.narrow(2, prefix, total - prefix), n_heads }
    }

    /// Runs the N tokens after the prefix.
    ///
    /// # Shapes
    /// `[B, N, d_model]` -> `[B, N, d_model]`
    pub(super) fn forward(&self, transformer: &Transformer, tokens: Tensor<3>) -> Tensor<3> {
        transformer.layers.iter().zip(&self.layers).fold(tokens, |x, (block, (keys, values))| {
            let [b, n, d] = x.dims();
            let normed = layer_norm(&block.norm1, x.clone());
            let queries = heads(&block.attn.query, normed.clone(), self.n_heads);
            let (new_keys, new_values) = keys_and_values(block, normed, self.n_heads);
            let keys = Tensor::cat(vec![keys.clone(), new_keys], 2); // [B, heads, P + N, d_model / heads]
            let values = Tensor::cat(vec![values.clone(), new_values], 2);
            let attended = attention(queries, keys, values, Some(self.mask.clone()));
            let x = x + linear(&block.attn.output, attended.swap_dims(1, 2).reshape([b, n, d]));
            x.clone() + block.mlp.forward(layer_norm(&block.norm2, x))
        })
    }
}

fn keys_and_values(block: &TransformerBlock, normed: Tensor<3>, n_heads: usize) -> (Tensor<4>, Tensor<4>) {
    (heads(&block.attn.key, normed.clone(), n_heads), heads(&block.attn.value, normed, n_heads))
}

/// `[B, S, D]` -> `[B, heads, S, D / heads]`
fn heads(layer: &Linear, x: Tensor<3>, n_heads: usize) -> Tensor<4> {
    let [b, s, d] = x.dims();
    linear(layer, x).reshape([b, s, n_heads, d / n_heads]).swap_dims(1, 2)
}
