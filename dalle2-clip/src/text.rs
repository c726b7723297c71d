//! CLIP's text transformer (Radford et al. 2021, section 2.4): causal, read at the end-of-text token.
//!
//! It departs from the original in one option: a model for a small world can keep embeddings for the tokens in use
//! only. The full vocabulary of 49,408 tokens would be most of a tiny model.

use burn::module::Initializer;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::prelude::*;
use dalle2_core::nn::{
    Activation, LayerNorm, Transformer, TransformerConfig, causal_mask, embedding, layer_norm, linear,
};
use dalle2_core::text::{END, START};
use dalle2_core::{ConfigError, Error, Result};
use serde::{Deserialize, Serialize};

/// Number of tokens of CLIP's byte-pair vocabulary.
const CLIP_VOCAB_SIZE: usize = 49_408;

/// Configuration of a [`TextTransformer`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextTransformerConfig {
    /// Number of tokens that the tokenizer knows.
    pub vocab_size: usize,
    /// The token ids that have an embedding of their own, ascending; `None` means all of them.
    ///
    /// All other tokens share one further embedding, "unknown". The tokenizer is not changed: ids are translated to
    /// rows of the embedding on the way in. Set it with [`with_vocabulary`](Self::with_vocabulary).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocabulary: Option<Vec<u32>>,
    /// Number S of token positions, start and end of text included.
    pub context_length: usize,
    /// Id of the token that fills the positions after the end of text: 0 for OpenAI's code, the end-of-text token for
    /// Hugging Face's. Padding never reaches the embedding of a caption.
    pub pad_token: u32,
    /// Width W of the token encodings.
    pub d_model: usize,
    /// Number of attention heads, a divisor of `d_model`.
    pub n_heads: usize,
    /// Number of transformer blocks.
    pub n_layers: usize,
    /// Width inside the feed-forward parts; `None` means 4 · `d_model`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub d_ff: Option<usize>,
    /// Nonlinearity of the feed-forward parts.
    pub activation: Activation,
    /// Dropout in the transformer's branches while training.
    pub dropout: f64,
    /// ε of the layer norms; `None` means 1e-5, CLIP's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_norm_eps: Option<f64>,
    /// Width D of the joint embedding space.
    pub embed_dim: usize,
    /// Where the caption's embedding is read; `None` means [`ReadAt::EndOfText`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_at: Option<ReadAt>,
}

/// The position whose encoding becomes the caption's embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadAt {
    /// The end token that the tokenizer has put behind the caption.
    #[default]
    EndOfText,
    /// The first position of the largest id, which is the same in CLIP's vocabulary: OpenAI's code, and the public
    /// configurations whose `eos_token_id` is 2.
    LargestId,
    /// The first position of this id, or the first position of all if it does not occur.
    Token(u32),
}

impl ReadAt {
    /// Number of positions up to and including the one to be read. `length` counts the ids that are text.
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
    /// One row for each token of the vocabulary (and one for unknown tokens, if the vocabulary is restricted).
    pub token_embedding: Embedding,
    /// Positions, `[S, W]`.
    pub position_embedding: Embedding,
    /// The blocks.
    pub transformer: Transformer,
    /// Norm after the transformer.
    pub final_norm: LayerNorm,
    /// Into the joint space, without bias: `[W, D]`.
    pub projection: Linear,
}

/// Token ids translated to rows of the embedding, with the number of tokens that are text.
#[derive(Debug, Clone)]
pub struct TokenBatch {
    /// `[B, S]`; S may be shorter than the model's context.
    pub rows: Tensor<2, Int>,
    /// For each caption the number of positions up to and including the end of text.
    pub lengths: Vec<usize>,
}

/// What the text tower computes.
#[derive(Debug, Clone)]
pub struct TextOutput {
    /// `[B, D]`: the captions' embeddings, not normalised.
    pub pooled: Tensor<2>,
    /// `[B, S, W]`: the encoding of each token after the final norm.
    pub tokens: Tensor<3>,
}

impl TextTransformerConfig {
    /// A configuration for CLIP's whole vocabulary with CLIP's feed-forward width, end-of-text padding and no dropout,
    /// and QuickGELU.
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

    /// Keeps embeddings for `ids` only (in any order, repeated or not), and for the start, end and padding tokens.
    pub fn with_vocabulary(mut self, ids: impl IntoIterator<Item = u32>) -> Self {
        let mut ids: Vec<u32> = ids.into_iter().chain([START, END, self.pad_token]).collect();
        ids.sort_unstable();
        ids.dedup();
        self.vocabulary = Some(ids);
        self
    }

    /// Number of rows of the token embedding.
    pub fn n_embeddings(&self) -> usize {
        self.vocabulary.as_ref().map_or(self.vocab_size, |ids| ids.len() + 1)
    }

    /// The row that tokens outside the vocabulary share, if the vocabulary is restricted.
    pub fn unknown_row(&self) -> Option<usize> {
        self.vocabulary.as_ref().map(Vec::len)
    }

    /// The row of the token embedding for `id`.
    ///
    /// # Errors
    /// When `id` is not below `vocab_size`.
    pub fn row(&self, id: u32) -> Result<usize> {
        match &self.vocabulary {
            _ if id as usize >= self.vocab_size => {
                Err(Error::Input(format!("token id {id}: must be below the vocabulary's size {}", self.vocab_size)))
            }
            Some(ids) => Ok(ids.binary_search(&id).unwrap_or(ids.len())),
            None => Ok(id as usize),
        }
    }

    /// Translates padded token ids to a batch for the model.
    ///
    /// Each item is a row of ids and the number of them up to and including the end of text; all rows have the same
    /// number of ids, at most `context_length`.
    ///
    /// # Errors
    /// When there are no rows, their lengths differ, are too long, or do not fit the number given, or an id is out of
    /// range.
    pub fn batch(&self, items: &[(Vec<u32>, usize)], device: &Device) -> Result<TokenBatch> {
        let width = items.first().map_or(0, |(ids, _)| ids.len());
        if width == 0 || width > self.context_length {
            return Err(Error::Input(format!(
                "token rows of {width} ids: must have between 1 and {} ids",
                self.context_length
            )));
        }
        let mut rows = Vec::with_capacity(items.len() * width);
        for (ids, length) in items {
            if ids.len() != width || !(1..=width).contains(length) {
                return Err(Error::Input(format!(
                    "a token row of {} ids of which {length} are text: must have {width} ids and 1 to {width} of text",
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

    /// Number of parameters, computed without allocating them.
    pub fn num_params(&self) -> usize {
        let w = self.d_model;
        let embeddings = (self.n_embeddings() + self.context_length) * w;
        embeddings + self.transformer().num_params() + 2 * w + w * self.embed_dim
    }

    /// Checks that the values can work together.
    ///
    /// # Errors
    /// Names the first field that is zero, does not divide, or is out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
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
                let found = format!("[… {}, {} …]", pair[0], pair[1]);
                return Err(ConfigError::new("vocabulary", found, "must ascend without repetition"));
            }
            if let Some(last) = ids.last().filter(|id| **id as usize >= self.vocab_size) {
                let expected = format!("ids must be below vocab_size = {}", self.vocab_size);
                return Err(ConfigError::new("vocabulary", last, expected));
            }
            for id in [START, END, self.pad_token] {
                if ids.binary_search(&id).is_err() {
                    let found = format!("[{} ids]", ids.len());
                    let expected = format!("must hold {id}: the start, end and padding tokens are always in use");
                    return Err(ConfigError::new("vocabulary", found, expected));
                }
            }
        }
        self.transformer().validate()
    }

    /// The transformer.
    pub fn transformer(&self) -> TransformerConfig {
        TransformerConfig::new(self.d_model, self.n_heads, self.n_layers)
            .with_d_ff(self.d_ff)
            .with_activation(self.activation)
            .with_dropout(self.dropout)
            .with_layer_norm_eps(self.layer_norm_eps)
    }

    /// A tower with random weights: token embeddings of deviation 0.02, positions 0.01, the rest as in CLIP.
    ///
    /// # Panics
    /// When [`validate`](Self::validate) would fail.
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
    /// When S is longer than the context, or `lengths` does not fit the rows.
    pub fn forward(&self, batch: &TokenBatch) -> TextOutput {
        let [b, s] = batch.rows.dims();
        let device = batch.rows.device();
        assert_eq!(batch.lengths.len(), b, "one length for each of the {b} captions");
        let positions = self.position_embedding.weight.val().slice(s![0..s, ..]).unsqueeze::<3>();
        let x = embedding(&self.token_embedding, batch.rows.clone()) + positions; // [B, S, W]
        let x = self.transformer.forward(x, Some(causal_mask(s, &device)));
        let tokens = layer_norm(&self.final_norm, x);
        TextOutput { pooled: linear(&self.projection, last_tokens(&tokens, &batch.lengths)), tokens }
    }
}

/// The encoding at each caption's end of text, `[B, S, W]` -> `[B, W]`.
fn last_tokens(tokens: &Tensor<3>, lengths: &[usize]) -> Tensor<2> {
    let [b, s, w] = tokens.dims();
    let index: Vec<i64> = lengths
        .iter()
        .enumerate()
        .map(|(row, &length)| {
            assert!((1..=s).contains(&length), "caption {row}: {length} tokens do not fit {s} positions");
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
    fn neither_padding_nor_the_row_width_reaches_the_embedding() {
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
    fn the_embedding_reads_every_word_and_their_order() {
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
    fn rows_that_do_not_fit_are_refused() {
        let device = Device::flex();
        let config = config();
        let long = caption(&[7; 8], 10, END);
        let uneven = [caption(&[7], 8, END), caption(&[7], 7, END)];
        for items in [&[][..], &[long], &uneven, &[(vec![START, END], 3)], &[(vec![START, 60_000], 2)]] {
            assert!(matches!(config.batch(items, &device), Err(Error::Input(_))));
        }
    }

    #[test]
    fn bad_values_are_named() {
        let field = |config: TextTransformerConfig| config.validate().unwrap_err().field;
        assert_eq!(field(TextTransformerConfig { vocabulary: Some(vec![START, END, 5]), ..config() }), "vocabulary");
        assert_eq!(field(TextTransformerConfig { vocabulary: Some(vec![1, END]), ..config() }), "vocabulary");
        assert_eq!(field(TextTransformerConfig { context_length: 1, ..config() }), "context_length");
        assert_eq!(field(TextTransformerConfig { pad_token: 50_000, ..config() }), "pad_token");
        assert_eq!(field(TextTransformerConfig { n_heads: 5, ..config() }), "n_heads");
        assert_eq!(config().validate(), Ok(()));
    }
}
