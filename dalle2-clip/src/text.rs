//! CLIP's text transformer (Radford et al. 2021, section 2.4): causal, with the embedding at the end-of-text token.
//!
//! One extension: a small model can restrict its vocabulary to the tokens in use, since embeddings for all 49,408 tokens
//! would dominate its size.

use burn::module::Initializer;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::prelude::*;
use dalle2_core::nn::{
    Activation, LayerNorm, Transformer, TransformerConfig, causal_mask, embedding, layer_norm, linear,
};
use dalle2_core::text::{END, START};
use dalle2_core::{ConfigError, Error, Result};
use serde::{Deserialize, Serialize};

use crate::limits::{MAX_CONTEXT, MAX_LAYERS, MAX_VOCABULARY, MAX_WIDTH, at_most};

/// Number of tokens of CLIP's byte-pair vocabulary.
const CLIP_VOCAB_SIZE: usize = 49_408;

/// Configuration of a [`TextTransformer`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextTransformerConfig {
    /// Number of token ids of the tokenizer.
    pub vocab_size: usize,
    /// The token ids with a separate embedding, in ascending order; `None` means all of them.
    ///
    /// All other tokens share one more embedding, "unknown". The tokenizer does not change: ids are mapped to rows of the
    /// embedding in the model. Set by [`with_vocabulary`](Self::with_vocabulary).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocabulary: Option<Vec<u32>>,
    /// Number S of token positions, including the start and the end of text.
    pub context_length: usize,
    /// Id of the padding token after the end of text: 0 in OpenAI's code, the end-of-text token in Hugging Face's. Padding
    /// does not affect the embedding of a caption.
    pub pad_token: u32,
    /// Width W of the token encodings.
    pub d_model: usize,
    /// Number of attention heads, a divisor of `d_model`.
    pub n_heads: usize,
    /// Number of transformer blocks.
    pub n_layers: usize,
    /// Hidden width of the feed-forward layers; `None` means 4 · `d_model`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub d_ff: Option<usize>,
    /// Nonlinearity of the feed-forward layers.
    pub activation: Activation,
    /// Dropout probability in the residual branches during training.
    pub dropout: f64,
    /// ε of the layer norms; `None` means CLIP's 1e-5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_norm_eps: Option<f64>,
    /// Width D of the joint embedding space.
    pub embed_dim: usize,
    /// Position of the caption's embedding; `None` means [`ReadAt::EndOfText`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_at: Option<ReadAt>,
}

/// The position of the token encoding that becomes the caption's embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadAt {
    /// The end-of-text token that the tokenizer appends to the caption.
    #[default]
    EndOfText,
    /// The first position of the largest id, as in OpenAI's code and in public configurations with an `eos_token_id` of 2.
    /// In CLIP's vocabulary this is the end-of-text token; in a vocabulary with added tokens it may be another one.
    LargestId,
    /// The first position of this id, or position 0 if the id does not occur.
    Token(u32),
}

impl ReadAt {
    /// Returns the number of positions up to and including the embedding's. `length` counts the ids before the padding.
    pub(crate) fn count(self, ids: &[u32], length: usize) -> usize {
        match self {
            Self::EndOfText => length,
            Self::LargestId => {
                let largest = ids.iter().max();
                ids.iter().position(|id| Some(id) == largest).map_or(length, |at| at + 1)
            }
            Self::Token(end) => ids.iter().position(|id| *id == end).unwrap_or(0) + 1,
        }
    }
}

/// The text tower.
#[derive(Module, Debug)]
pub struct TextTransformer {
    /// One row per token of the vocabulary, plus one for unknown tokens if the vocabulary is restricted.
    pub token_embedding: Embedding,
    /// Position embeddings, `[S, W]`.
    pub position_embedding: Embedding,
    /// The transformer blocks.
    pub transformer: Transformer,
    /// Layer norm after the transformer.
    pub final_norm: LayerNorm,
    /// Projection to the joint space, without bias: `[W, D]`.
    pub projection: Linear,
}

/// Captions as rows of the token embedding, with their lengths.
#[derive(Debug, Clone)]
pub struct TokenBatch {
    /// `[B, S]`; S may be shorter than the model's context.
    pub rows: Tensor<2, Int>,
    /// Number of positions of each caption up to and including the end of text.
    pub lengths: Vec<usize>,
}

/// The output of the text tower.
#[derive(Debug, Clone)]
pub struct TextOutput {
    /// Embeddings of the captions, `[B, D]`, not normalised.
    pub pooled: Tensor<2>,
    /// Encodings of the tokens after the final norm, `[B, S, W]`.
    pub tokens: Tensor<3>,
}

impl TextTransformerConfig {
    /// Creates a configuration with CLIP's full vocabulary, feed-forward width and QuickGELU, end-of-text padding and no
    /// dropout.
    ///
    /// `transformer` is `[d_model, n_heads, n_layers]`.
    pub fn new(context_length: usize, transformer: [usize; 3], embed_dim: usize) -> Self {
        Self {
            vocab_size: CLIP_VOCAB_SIZE,
            vocabulary: None,
            context_length,
            pad_token: END,
            d_model: transformer[0],
            n_heads: transformer[1],
            n_layers: transformer[2],
            d_ff: None,
            activation: Activation::QuickGelu,
            dropout: 0.0,
            layer_norm_eps: None,
            embed_dim,
            read_at: None,
        }
    }

    /// Restricts the vocabulary to `ids`, in any order, and the start, end and padding tokens.
    pub fn with_vocabulary(mut self, ids: impl IntoIterator<Item = u32>) -> Self {
        let mut ids: Vec<u32> = ids.into_iter().chain([START, END, self.pad_token]).collect();
        ids.sort_unstable();
        ids.dedup();
        self.vocabulary = Some(ids);
        self
    }

    /// Returns the number of rows of the token embedding.
    pub fn n_embeddings(&self) -> usize {
        self.vocabulary.as_ref().map_or(self.vocab_size, |ids| ids.len() + 1)
    }

    /// Returns the row of tokens outside the vocabulary, if the vocabulary is restricted.
    pub fn unknown_row(&self) -> Option<usize> {
        self.vocabulary.as_ref().map(Vec::len)
    }

    /// Returns the row of the token embedding for `id`.
    ///
    /// # Errors
    /// If `id` is not below `vocab_size`.
    pub fn row(&self, id: u32) -> Result<usize> {
        match &self.vocabulary {
            _ if id as usize >= self.vocab_size => {
                Err(Error::Input(format!("token id {id}: must be below the vocabulary size {}", self.vocab_size)))
            }
            Some(ids) => Ok(ids.binary_search(&id).unwrap_or(ids.len())),
            None => Ok(id as usize),
        }
    }

    /// Converts padded token ids to a batch for the model.
    ///
    /// Each item is a row of ids and its length up to and including the end of text. All rows have the same number of ids,
    /// at most `context_length`.
    ///
    /// # Errors
    /// If there are no rows, they differ in size or exceed the context, a length exceeds its row, or an id is out of range.
    pub fn batch(&self, items: &[(Vec<u32>, usize)], device: &Device) -> Result<TokenBatch> {
        let width = items.first().map_or(0, |(ids, _)| ids.len());
        if width == 0 || width > self.context_length {
            return Err(Error::Input(format!(
                "token rows have {width} ids: expected between 1 and {} ids",
                self.context_length
            )));
        }
        let mut rows = Vec::with_capacity(items.len() * width);
        for (ids, length) in items {
            if ids.len() != width || !(1..=width).contains(length) {
                return Err(Error::Input(format!(
                    "a token row has {} ids and the length {length}: expected {width} ids and a length from 1 to {width}",
                    ids.len()
                )));
            }
            for &id in ids {
                rows.push(self.row(id)? as i64);
            }
        }
        Ok(TokenBatch {
            rows: Tensor::from_data(TensorData::new(rows, [items.len(), width]), device),
            lengths: items.iter().map(|(_, length)| *length).collect(),
        })
    }

    /// Computes the number of parameters without allocating them.
    pub fn num_params(&self) -> usize {
        let w = self.d_model;
        let embeddings = (self.n_embeddings() + self.context_length) * w;
        embeddings + self.transformer().num_params() + 2 * w + w * self.embed_dim
    }

    /// Checks all fields.
    ///
    /// # Errors
    /// Names the first field that is zero, out of range or not divisible.
    pub fn validate(&self) -> Result<(), ConfigError> {
        at_most("vocab_size", self.vocab_size, MAX_VOCABULARY)?;
        at_most("context_length", self.context_length, MAX_CONTEXT)?;
        at_most("d_model", self.d_model, MAX_WIDTH)?;
        at_most("n_layers", self.n_layers, MAX_LAYERS)?;
        at_most("d_ff", self.d_ff.unwrap_or(0), MAX_WIDTH)?;
        at_most("embed_dim", self.embed_dim, MAX_WIDTH)?;
        if self.vocab_size == 0 {
            return Err(ConfigError::new("vocab_size", 0, "must be at least 1"));
        }
        if self.context_length < 2 {
            let expected = "must be at least 2, for the start and the end of text";
            return Err(ConfigError::new("context_length", self.context_length, expected));
        }
        if self.pad_token as usize >= self.vocab_size {
            let expected = format!("must be below vocab_size = {}", self.vocab_size);
            return Err(ConfigError::new("pad_token", self.pad_token, expected));
        }
        if self.embed_dim == 0 {
            return Err(ConfigError::new("embed_dim", 0, "must be at least 1"));
        }
        if let Some(ids) = &self.vocabulary {
            if let Some(pair) = ids.windows(2).find(|pair| pair[0] >= pair[1]) {
                let ids = format!("[… {}, {} …]", pair[0], pair[1]);
                return Err(ConfigError::new("vocabulary", ids, "must be in ascending order without duplicates"));
            }
            if let Some(last) = ids.last().filter(|id| **id as usize >= self.vocab_size) {
                let expected = format!("ids must be below vocab_size = {}", self.vocab_size);
                return Err(ConfigError::new("vocabulary", last, expected));
            }
            for id in [START, END, self.pad_token] {
                if ids.binary_search(&id).is_err() {
                    let expected = format!("must contain {id}: the start, end and padding tokens are always in use");
                    return Err(ConfigError::new("vocabulary", format!("[{} ids]", ids.len()), expected));
                }
            }
        }
        self.transformer().validate()
    }

    /// Returns the configuration of the transformer.
    pub fn transformer(&self) -> TransformerConfig {
        TransformerConfig::new(self.d_model, self.n_heads, self.n_layers)
            .with_d_ff(self.d_ff)
            .with_activation(self.activation)
            .with_dropout(self.dropout)
            .with_layer_norm_eps(self.layer_norm_eps)
    }

    /// Initializes a tower with random weights: token embeddings of standard deviation 0.02, positions of 0.01, the rest as
    /// in CLIP. The configuration must be valid, see [`validate`](Self::validate).
    pub fn init(&self, device: &Device) -> TextTransformer {
        let w = self.d_model;
        let normal = |std: f64| Initializer::Normal { mean: 0.0, std };
        TextTransformer {
            token_embedding: EmbeddingConfig::new(self.n_embeddings(), w).with_initializer(normal(0.02)).init(device),
            position_embedding: EmbeddingConfig::new(self.context_length, w)
                .with_initializer(normal(0.01))
                .init(device),
            transformer: self.transformer().init(device),
            final_norm: self.transformer().norm(device),
            projection: LinearConfig::new(w, self.embed_dim)
                .with_bias(false)
                .with_initializer(normal((w as f64).powf(-0.5)))
                .init(device),
        }
    }
}

impl TextTransformer {
    /// Encodes a batch of captions.
    ///
    /// # Shapes
    /// rows `[B, S]` -> pooled `[B, D]`, tokens `[B, S, W]`
    ///
    /// # Panics
    /// If S exceeds the context, or `lengths` does not match the rows.
    pub fn forward(&self, batch: &TokenBatch) -> TextOutput {
        let [b, s] = batch.rows.dims();
        let device = batch.rows.device();
        assert_eq!(batch.lengths.len(), b, "one length per caption");
        let positions = self.position_embedding.weight.val().slice(s![0..s, ..]).unsqueeze::<3>();
        let x = embedding(&self.token_embedding, batch.rows.clone()) + positions; // [B, S, W]
        let x = self.transformer.forward(x, Some(causal_mask(s, &device)));
        let tokens = layer_norm(&self.final_norm, x);
        TextOutput { pooled: linear(&self.projection, last_tokens(&tokens, &batch.lengths)), tokens }
    }
}

/// Returns the encoding at the last position of each caption, `[B, S, W]` -> `[B, W]`.
fn last_tokens(tokens: &Tensor<3>, lengths: &[usize]) -> Tensor<2> {
    let [b, s, w] = tokens.dims();
    let index: Vec<i64> = lengths
        .iter()
        .enumerate()
        .map(|(row, &length)| {
            assert!((1..=s).contains(&length), "caption {row} has {length} tokens, expected 1 to {s}");
            (row * s + length - 1) as i64
        })
        .collect();
    let index = Tensor::<1, Int>::from_data(TensorData::new(index, [b]), &tokens.device());
    tokens.clone().reshape([b * s, w]).select(0, index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Tolerance;

    const TOLERANCE: fn() -> Tolerance<f32> = || Tolerance::rel_abs(1e-4, 1e-5);

    fn config() -> TextTransformerConfig {
        TextTransformerConfig::new(8, [16, 4, 2], 12).with_vocabulary([320, 7, 11, 7])
    }

    fn caption(words: &[u32], context: usize, pad: u32) -> (Vec<u32>, usize) {
        let mut ids: Vec<u32> = [START].into_iter().chain(words.iter().copied()).chain([END]).collect();
        let length = ids.len();
        ids.resize(context, pad);
        (ids, length)
    }

    #[test]
    fn a_restricted_vocabulary_maps_other_tokens_to_one_row() {
        let config = config();
        assert_eq!(config.vocabulary, Some(vec![7, 11, 320, START, END]));
        assert_eq!((config.n_embeddings(), config.unknown_row()), (6, Some(5)));
        let rows: Vec<usize> = [7, 11, 320, START, END, 8, 49_000].map(|id| config.row(id).unwrap()).to_vec();
        assert_eq!(rows, [0, 1, 2, 3, 4, 5, 5]);
        assert!(config.row(49_408).unwrap_err().to_string().contains("49408"));
        assert_eq!(config.init(&Device::flex()).num_params(), config.num_params());
    }

    #[test]
    fn neither_padding_nor_the_row_width_affects_the_embedding() {
        let device = Device::flex();
        let config = config();
        let model = config.init(&device);
        let embed = |items: &[(Vec<u32>, usize)]| model.forward(&config.batch(items, &device).unwrap());
        let reference = embed(&[caption(&[7, 320], 8, END), caption(&[11], 8, END)]);
        assert_eq!((reference.pooled.dims(), reference.tokens.dims()), ([2, 12], [2, 8, 16]));
        for (width, pad) in [(8, 7), (8, 0), (4, END)] {
            let other = embed(&[caption(&[7, 320], width, pad), caption(&[11], width, pad)]);
            other.pooled.into_data().assert_approx_eq::<f32>(&reference.pooled.to_data(), TOLERANCE());
            let expected = reference.tokens.clone().slice(s![.., 0..3, ..]);
            let tokens = other.tokens.slice(s![.., 0..3, ..]);
            tokens.into_data().assert_approx_eq::<f32>(&expected.into_data(), TOLERANCE());
        }
    }

    #[test]
    fn the_embedding_depends_on_every_word_and_their_order() {
        let device = Device::flex();
        let config = config();
        let model = config.init(&device);
        let items = [caption(&[7, 11], 8, END), caption(&[11, 7], 8, END), caption(&[7, 320], 8, END)];
        let pooled = model.forward(&config.batch(&items, &device).unwrap()).pooled;
        for other in 1..3 {
            let change = (pooled.clone().slice(s![0..1, ..]) - pooled.clone().slice(s![other..other + 1, ..])).abs();
            assert!(change.max().into_scalar::<f32>() > 1e-4);
        }
    }

    #[test]
    fn invalid_rows_are_refused() {
        let device = Device::flex();
        let config = config();
        let long = caption(&[7; 8], 10, END);
        let uneven = [caption(&[7], 8, END), caption(&[7], 7, END)];
        for items in [&[][..], &[long], &uneven, &[(vec![START, END], 3)], &[(vec![START, 60_000], 2)]] {
            assert!(matches!(config.batch(items, &device), Err(Error::Input(_))));
        }
    }

    #[test]
    fn invalid_values_are_named() {
        let field = |config: TextTransformerConfig| config.validate().unwrap_err().field;
        assert_eq!(field(TextTransformerConfig { vocabulary: Some(vec![START, END, 5]), ..config() }), "vocabulary");
        assert_eq!(field(TextTransformerConfig { vocabulary: Some(vec![1, END]), ..config() }), "vocabulary");
        assert_eq!(field(TextTransformerConfig { context_length: 1, ..config() }), "context_length");
        assert_eq!(field(TextTransformerConfig { pad_token: 50_000, ..config() }), "pad_token");
        assert_eq!(field(TextTransformerConfig { n_heads: 5, ..config() }), "n_heads");
        assert_eq!(config().validate(), Ok(()));
    }
}
