//! A text transformer of the decoder's own over CLIP's tokens (DALL·E 2, section 2.1, after GLIDE, arXiv 2112.10741,
//! section 4.1): the encoding of every token becomes a context token, and that of the end of text is added to the timestep
//! embedding. Without it the decoder reads the encodings of the frozen CLIP, as the public weights do.
//!
//! As in GLIDE every token reads every other. Padding is masked out here, where GLIDE learns an embedding for it.

use burn::module::Initializer;
use burn::nn::{Embedding, EmbeddingConfig};
use burn::prelude::*;
use dalle2_core::nn::{Activation, LayerNorm, LayerNormConfig, Transformer, TransformerConfig, embedding, layer_norm};
use dalle2_core::{ConfigError, TokenMask};
use serde::{Deserialize, Serialize};

/// Number of tokens of CLIP's byte-pair vocabulary.
const CLIP_VOCAB_SIZE: usize = 49_408;

/// Configuration of a [`CaptionEncoder`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptionEncoderConfig {
    /// Number of tokens that the tokenizer knows.
    pub vocab_size: usize,
    /// Largest number of token positions.
    pub context_length: usize,
    /// Width of the transformer.
    pub d_model: usize,
    /// Attention heads, a divisor of `d_model`.
    pub n_heads: usize,
    /// Transformer blocks.
    pub n_layers: usize,
}

impl CaptionEncoderConfig {
    /// The paper's (Table 3): context 256, width 2048, 24 blocks, 32 heads.
    pub fn paper() -> Self {
        Self { vocab_size: CLIP_VOCAB_SIZE, context_length: 256, d_model: 2048, n_heads: 32, n_layers: 24 }
    }

    /// One that learns within minutes on a CPU.
    pub fn tiny() -> Self {
        Self { context_length: 32, d_model: 64, n_heads: 2, n_layers: 2, ..Self::paper() }
    }

    fn transformer(&self) -> TransformerConfig {
        TransformerConfig::new(self.d_model, self.n_heads, self.n_layers).with_activation(Activation::Gelu)
    }

    /// Checks that the values can work together.
    ///
    /// # Errors
    /// Names the first field that is zero or does not divide.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (field, value) in [("vocab_size", self.vocab_size), ("context_length", self.context_length)] {
            if value == 0 {
                return Err(ConfigError::new(field, value, "must be at least 1"));
            }
        }
        self.transformer().validate()
    }

    pub(crate) fn init(&self, device: &Device) -> CaptionEncoder {
        let embedding = |n: usize, std: f64| {
            let normal = Initializer::Normal { mean: 0.0, std };
            EmbeddingConfig::new(n, self.d_model).with_initializer(normal).init(device)
        };
        CaptionEncoder {
            token_embedding: embedding(self.vocab_size, 0.02),
            position_embedding: embedding(self.context_length, 0.01),
            transformer: self.transformer().init(device),
            final_norm: LayerNormConfig::new(self.d_model).init(device),
        }
    }
}

/// The transformer.
#[derive(Module, Debug)]
pub struct CaptionEncoder {
    token_embedding: Embedding,
    position_embedding: Embedding,
    transformer: Transformer,
    final_norm: LayerNorm,
}

impl CaptionEncoder {
    /// Encodes tokens. Gives the encodings, and of each caption that of its last token.
    ///
    /// # Shapes
    /// - ids, mask: `[B, S]`
    /// - result: `[B, S, d_model]` and `[B, d_model]`
    ///
    /// # Panics
    /// When S exceeds the context length.
    pub fn forward(&self, ids: Tensor<2, Int>, mask: &TokenMask) -> (Tensor<3>, Tensor<2>) {
        let [b, s] = ids.dims();
        let [context, d] = self.position_embedding.weight.dims();
        assert!(s <= context, "{s} tokens for a caption encoder of {context}");
        let positions = self.position_embedding.weight.val().slice_dim(0, 0..s).unsqueeze_dim::<3>(0);
        let x = embedding(&self.token_embedding, ids) + positions;
        // Every row has at least the start of text, so no query is left without keys.
        let padding = mask.padding().reshape([b, 1, 1, s]).expand([b, 1, s, s]);
        let tokens = layer_norm(&self.final_norm, self.transformer.forward(x, Some(padding)));
        let last = mask.keep().int().sum_dim(1) - 1; // [B, 1]
        let last = tokens.clone().gather(1, last.unsqueeze_dim::<3>(2).expand([b, 1, d])).reshape([b, d]);
        (tokens, last)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Distribution, Tolerance};

    use super::*;

    fn config() -> CaptionEncoderConfig {
        CaptionEncoderConfig { vocab_size: 20, context_length: 6, d_model: 16, n_heads: 2, n_layers: 2 }
    }

    #[test]
    fn padding_does_not_matter_and_the_last_token_is_read() {
        let device = Device::flex();
        let encoder = config().init(&device);
        let ids = |pad: i32| Tensor::<2, Int>::from_ints([[1, 7, 9, pad, pad], [1, 3, 9, 2, 9]], &device);
        let mask = TokenMask::from_lengths(&[3, 5], 5, &device);
        let (tokens, last) = encoder.forward(ids(0), &mask);
        let (others, other_last) = encoder.forward(ids(5), &mask);
        assert_eq!((tokens.dims(), last.dims()), ([2, 5, 16], [2, 16]));
        let kept = |x: Tensor<3>| x.slice([0..1, 0..3, 0..16]).into_data();
        kept(tokens.clone()).assert_approx_eq::<f32>(&kept(others), Tolerance::rel_abs(1e-5, 1e-5));
        last.clone().into_data().assert_approx_eq::<f32>(&other_last.into_data(), Tolerance::rel_abs(1e-5, 1e-5));
        let expected =
            Tensor::cat(vec![tokens.clone().slice([0..1, 2..3, 0..16]), tokens.slice([1..2, 4..5, 0..16])], 0);
        last.into_data().assert_eq(&expected.reshape([2, 16]).into_data(), true);
    }

    #[test]
    fn the_order_of_tokens_matters() {
        let device = Device::flex();
        let mut encoder = config().init(&device);
        let shape = encoder.position_embedding.weight.dims();
        let noise = Tensor::random(shape, Distribution::Normal(0.0, 1.0), &device);
        encoder.position_embedding.weight = burn::module::Param::from_tensor(noise);
        let mask = TokenMask::from_lengths(&[4, 4], 4, &device);
        let (_, last) = encoder.forward(Tensor::from_ints([[1, 4, 5, 2], [1, 5, 4, 2]], &device), &mask);
        let difference = last.clone().slice_dim(0, 0..1) - last.slice_dim(0, 1..2);
        assert!(difference.abs().max().into_scalar::<f32>() > 1e-3);
    }

    #[test]
    fn bad_values_are_named() {
        let field = |config: CaptionEncoderConfig| config.validate().unwrap_err().field;
        assert_eq!(field(CaptionEncoderConfig { vocab_size: 0, ..config() }), "vocab_size");
        assert_eq!(field(CaptionEncoderConfig { n_heads: 3, ..config() }), "n_heads");
        assert!(CaptionEncoderConfig::paper().validate().is_ok());
    }
}
