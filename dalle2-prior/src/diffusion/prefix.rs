//! Keys and values of the tokens that stay the same while a causal transformer is asked again and again.
//!
//! Under a causal mask the caption's tokens never read the tokens of a diffusion step, so their keys and values in
//! every layer are computed once per generation.

use burn::prelude::*;
use dalle2_core::nn::Transformer;

use crate::cache::KeyValueCache;

/// Keys and values of a prefix in every layer, and what the tokens after it may read.
#[derive(Debug, Clone)]
pub struct Prefix {
    cache: KeyValueCache,
    /// `[B, 1, N, P + N]` for N tokens after the prefix.
    mask: Tensor<4, Bool>,
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
        let mut cache = KeyValueCache::new(transformer, n_heads);
        cache.extend(transformer, tokens, own_mask);
        Self { cache, mask: mask.narrow(2, prefix, total - prefix) }
    }

    /// Runs the N tokens after the prefix.
    ///
    /// # Shapes
    /// `[B, N, d_model]` -> `[B, N, d_model]`
    pub(super) fn forward(&self, transformer: &Transformer, tokens: Tensor<3>) -> Tensor<3> {
        self.cache.clone().extend(transformer, tokens, self.mask.clone())
    }
}
