//! Keys and values of tokens that a causal transformer has read.
//!
//! Under a causal mask a token never reads those after it, so its keys and values in every layer are computed once and
//! serve all tokens that follow.

use burn::nn::Linear;
use burn::prelude::*;
use dalle2_core::nn::{
    Transformer, TransformerBlock, attention, concat, layer_norm, linear, linear_add, merge_heads, split_heads,
};

/// The keys and values of the first tokens of a batch of sequences, in every layer.
#[derive(Debug, Clone)]
pub(crate) struct KeyValueCache {
    /// Per layer, `[B, heads, P, d_model / heads]` each; none before the first token.
    layers: Vec<Option<(Tensor<4>, Tensor<4>)>>,
    n_heads: usize,
    len: usize,
}

impl KeyValueCache {
    /// For a transformer with `n_heads` heads that has read nothing.
    pub fn new(transformer: &Transformer, n_heads: usize) -> Self {
        Self { layers: vec![None; transformer.layers.len()], n_heads, len: 0 }
    }

    /// Number P of tokens read.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Reads N more tokens and gives their encodings. `mask` says which of the P + N tokens each of them must not read.
    ///
    /// # Shapes
    /// - tokens: `[B, N, d_model]`
    /// - mask: `[B, 1, N, P + N]`, `true` = masked out
    /// - output: `[B, N, d_model]`
    pub fn extend(&mut self, transformer: &Transformer, tokens: Tensor<3>, mask: Tensor<4, Bool>) -> Tensor<3> {
        self.len += tokens.dims()[1];
        let n_heads = self.n_heads;
        transformer
            .layers
            .iter()
            .zip(&mut self.layers)
            .fold(tokens, |x, (block, known)| read(block, n_heads, x, known, mask.clone()))
    }

    /// The same tokens for other rows of the batch: row i of the result is row `rows[i]` of this.
    pub fn select(&self, rows: &Tensor<1, Int>) -> Self {
        let pick = |x: &Tensor<4>| x.clone().select(0, rows.clone());
        let layers = self.layers.iter().map(|layer| layer.as_ref().map(|(k, v)| (pick(k), pick(v)))).collect();
        Self { layers, n_heads: self.n_heads, len: self.len }
    }
}

/// One block over new tokens, whose keys and values are added to the known ones.
fn read(
    block: &TransformerBlock,
    n_heads: usize,
    x: Tensor<3>,
    known: &mut Option<(Tensor<4>, Tensor<4>)>,
    mask: Tensor<4, Bool>,
) -> Tensor<3> {
    let normed = layer_norm(&block.norm1, x.clone());
    let queries = heads(&block.attn.query, normed.clone(), n_heads);
    let new = (heads(&block.attn.key, normed.clone(), n_heads), heads(&block.attn.value, normed, n_heads));
    let (keys, values) = match known.take() {
        // [B, heads, P + N, d_model / heads]
        Some((keys, values)) => (concat(keys, new.0, 2), concat(values, new.1, 2)),
        None => new,
    };
    *known = Some((keys.clone(), values.clone()));
    let attended = attention(queries, keys, values, Some(mask));
    let x = linear_add(&block.attn.output, merge_heads(attended), x);
    block.mlp.forward_add(layer_norm(&block.norm2, x.clone()), x)
}

/// `[B, S, D]` -> `[B, heads, S, D / heads]`
fn heads(layer: &Linear, x: Tensor<3>, n_heads: usize) -> Tensor<4> {
    split_heads(linear(layer, x), n_heads)
}
