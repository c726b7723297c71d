//! The trained text tower with its tokenizer, as a stage of a pipeline.

use std::collections::BTreeMap;
use std::path::Path;

use burn::prelude::*;
use dalle2_core::diffusers::IndexEntry;
use dalle2_core::store::{self, WEIGHTS_FILE};
use dalle2_core::text::{ClipTokenizer, PadWith};
use dalle2_core::{Component, Error, FloatType, Result, TextCondition, TextEncoder, TokenMask, on_pool};
use serde_json::{Map, Value};

use crate::diffusers;
use crate::import::text_tensor_name;
use crate::pretrained::load_text_encoder;
use crate::{TextTransformer, TextTransformerConfig};

/// Encodes captions with CLIP's text tower.
#[derive(Debug)]
pub struct ClipTextEncoder {
    config: TextTransformerConfig,
    model: TextTransformer,
    tokenizer: ClipTokenizer,
    device: Device,
    /// The `config.json` in transformers' form that this encoder was read from.
    source: Option<Map<String, Value>>,
}

impl ClipTextEncoder {
    /// Class name on disk.
    pub const CLASS: &'static str = "ClipTextEncoder";

    /// Creates an encoder from a text tower and its configuration, with OpenAI's tokenizer and without gradients.
    ///
    /// # Errors
    /// If the configuration is invalid.
    pub fn new(config: TextTransformerConfig, model: &TextTransformer) -> Result<Self> {
        config.validate()?;
        let model = model.valid();
        let device = model.position_embedding.weight.val().device();
        Ok(Self { config, model, tokenizer: ClipTokenizer::openai()?, device, source: None })
    }

    /// Reads a text encoder and its tokenizer from a directory.
    ///
    /// | directory | recognised by | tokenizer |
    /// |---|---|---|
    /// | written by this library | `config.json` with `_class_name` | OpenAI's |
    /// | transformers' `CLIPTextModelWithProjection` | `config.json` without `_class_name` | files beside it, otherwise OpenAI's |
    /// | a pipeline of diffusers or of this library | a subdirectory `text_encoder` | subdirectory `tokenizer` |
    ///
    /// # Errors
    /// If a file is missing or damaged, the configuration names another class or has a value that this model does not
    /// support, a tensor does not match the configuration, or the tokenizer does not match the model.
    pub fn load(dir: impl AsRef<Path>, device: &Device) -> Result<Self> {
        load_text_encoder(dir.as_ref(), device)
    }

    /// Replaces the tokenizer, and the padding token by the tokenizer's.
    ///
    /// # Errors
    /// If the tokenizer has ids that the model does not embed.
    pub fn with_tokenizer(mut self, tokenizer: ClipTokenizer) -> Result<Self> {
        if tokenizer.vocab_size() > self.config.vocab_size {
            let message = format!(
                "the tokenizer has ids up to {}, the text encoder embeds {} tokens",
                tokenizer.vocab_size().saturating_sub(1),
                self.config.vocab_size
            );
            return Err(Error::Mismatch(message));
        }
        self.config.pad_token = tokenizer.pad_token();
        self.config.validate()?;
        self.tokenizer = tokenizer;
        Ok(self)
    }

    pub(crate) fn with_source(mut self, source: Map<String, Value>) -> Self {
        self.source = Some(source);
        self
    }

    pub(crate) fn source(&self) -> Option<&Map<String, Value>> {
        self.source.as_ref()
    }

    /// Returns the tokenizer.
    pub fn tokenizer(&self) -> &ClipTokenizer {
        &self.tokenizer
    }

    /// Returns the configuration of the text tower.
    pub fn config(&self) -> &TextTransformerConfig {
        &self.config
    }

    /// Returns the text tower.
    pub fn model(&self) -> &TextTransformer {
        &self.model
    }
}

impl Component for ClipTextEncoder {
    fn class_name(&self) -> &str {
        Self::CLASS
    }

    fn save(&self, dir: &Path, float_type: FloatType) -> Result<()> {
        let weights = dir.join(WEIGHTS_FILE);
        store::save_module_as(&self.model, weights, float_type, &BTreeMap::new(), &text_tensor_name)?;
        store::write_config(dir, Self::CLASS, &self.config)
    }

    fn diffusers_faults(&self) -> Vec<String> {
        diffusers::text_faults(self)
    }

    fn save_diffusers(&self, root: &Path, float_type: FloatType) -> Result<Vec<IndexEntry>> {
        diffusers::save_text(self, &self.tokenizer, root, float_type)
    }
}

impl ClipTextEncoder {
    fn encode_tokens(&self, items: &[TokenRow]) -> Result<TextCondition> {
        let mut batch = self.config.batch(items, &self.device)?;
        let lengths = batch.lengths.clone();
        if let Some(read_at) = self.config.read_at {
            batch.lengths = items.iter().map(|(ids, length)| read_at.count(ids, *length)).collect();
        }
        let output = on_pool(&self.device, || self.model.forward(&batch));
        let ids: Vec<i64> = items.iter().flat_map(|(ids, _)| ids.iter().map(|id| i64::from(*id))).collect();
        let ids = TensorData::new(ids, [items.len(), self.config.context_length]);
        let mask = TokenMask::from_lengths(&lengths, self.config.context_length, &self.device)
            .with_ids(Tensor::from_data(ids, &self.device));
        Ok(TextCondition { pooled: output.pooled, tokens: output.tokens, mask })
    }
}

impl TextEncoder for ClipTextEncoder {
    fn encode(&self, captions: &[&str]) -> Result<TextCondition> {
        self.encode_tokens(&tokenize(&self.tokenizer, &self.config, captions)?)
    }

    fn encode_truncated(&self, captions: &[&str]) -> Result<(TextCondition, usize)> {
        let (items, truncated) = tokenize_truncated(&self.tokenizer, &self.config, captions)?;
        Ok((self.encode_tokens(&items)?, truncated))
    }

    fn count_tokens(&self, caption: &str) -> Result<usize> {
        Ok(self.tokenizer.encode(caption)?.len() + 2)
    }

    fn embed_dim(&self) -> usize {
        self.config.embed_dim
    }

    fn token_width(&self) -> usize {
        self.config.d_model
    }

    fn context_length(&self) -> usize {
        self.config.context_length
    }
}

/// Padded token ids and the number of them before the padding.
pub(crate) type TokenRow = (Vec<u32>, usize);

/// Tokenizes captions for requests: refuses overlong ones.
fn tokenize(tokenizer: &ClipTokenizer, config: &TextTransformerConfig, captions: &[&str]) -> Result<Vec<TokenRow>> {
    captions
        .iter()
        .map(|caption| {
            let (ids, length) = tokenizer.encode_padded(caption, config.context_length, PadWith::EndOfText)?;
            Ok(padded(ids, length, config))
        })
        .collect()
}

/// Tokenizes captions of data sets: truncates overlong ones, and counts them.
pub(crate) fn tokenize_truncated(
    tokenizer: &ClipTokenizer,
    config: &TextTransformerConfig,
    captions: &[&str],
) -> Result<(Vec<TokenRow>, usize)> {
    let mut rows = Vec::with_capacity(captions.len());
    let mut truncated = 0;
    for caption in captions {
        let tokens = tokenizer.encode_truncated(caption, config.context_length, PadWith::EndOfText)?;
        truncated += usize::from(tokens.is_truncated);
        rows.push(padded(tokens.ids, tokens.length, config));
    }
    Ok((rows, truncated))
}

fn padded(mut ids: Vec<u32>, length: usize, config: &TextTransformerConfig) -> TokenRow {
    ids[length..].fill(config.pad_token);
    (ids, length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Tolerance;

    fn encoder() -> ClipTextEncoder {
        let tokenizer = ClipTokenizer::openai().unwrap();
        let config = TextTransformerConfig::new(8, [16, 4, 2], 12)
            .with_vocabulary(["red apple", "blue"].iter().flat_map(|words| tokenizer.encode(words).unwrap()));
        let model = config.init(&Device::flex());
        ClipTextEncoder::new(config, &model).unwrap()
    }

    #[test]
    fn encodes_captions_of_different_lengths_and_the_empty_one() {
        let encoder = encoder();
        let condition = encoder.encode(&["red apple", "", "blue"]).unwrap();
        assert_eq!(condition.pooled.dims(), [3, encoder.embed_dim()]);
        assert_eq!(condition.tokens.dims(), [3, encoder.context_length(), encoder.token_width()]);
        let is_text: Vec<bool> = condition.mask.keep().into_data().iter::<bool>().collect();
        let lengths: Vec<usize> = is_text.chunks(8).map(|row| row.iter().filter(|text| **text).count()).collect();
        assert_eq!(lengths, [4, 2, 3]);

        let ids: Vec<i64> = condition.mask.ids().unwrap().into_data().iter::<i64>().collect();
        let tokenizer = ClipTokenizer::openai().unwrap();
        let apple: Vec<i64> = tokenizer.encode("red apple").unwrap().into_iter().map(i64::from).collect();
        assert_eq!(ids[1..3], apple, "the tokenizer's ids, not rows of a restricted vocabulary");

        let alone = encoder.encode(&["blue"]).unwrap().pooled;
        let expected = condition.pooled.slice(s![2..3, ..]).into_data();
        alone.into_data().assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(1e-4, 1e-5));
    }

    #[test]
    fn a_request_with_an_overlong_caption_is_refused() {
        let error = encoder().encode(&["red apple red apple red apple red apple"]).unwrap_err();
        assert!(error.to_string().contains("red apple"), "{error}");
    }

    #[test]
    fn truncation_preserves_the_end_of_text_token() {
        let encoder = encoder();
        // Six tokens fit between start and end.
        let captions = ["red apple red apple red apple blue blue blue"];
        let (truncated, count) = encoder.encode_truncated(&captions).unwrap();
        assert_eq!(count, 1);
        assert_eq!(encoder.encode_truncated(&["red apple"]).unwrap().1, 0);
        let expected = encoder.encode(&["red apple red apple red apple"]).unwrap();
        truncated.tokens.into_data().assert_eq(&expected.tokens.into_data(), true);
    }

    #[test]
    fn saved_and_loaded_encoders_are_equal_and_wrong_directories_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let encoder = encoder();
        encoder.save(dir.path(), FloatType::F32).unwrap();
        let loaded = ClipTextEncoder::load(dir.path(), &Device::flex()).unwrap();
        assert_eq!(loaded.config(), encoder.config());
        let embed = |encoder: &ClipTextEncoder| encoder.encode(&["red apple"]).unwrap().pooled.into_data();
        embed(&loaded).assert_eq(&embed(&encoder), true);

        let path = dir.path().join("config.json");
        let text = std::fs::read_to_string(&path).unwrap();
        for (from, to, expected) in [
            ("ClipTextEncoder", "ClipImageEncoder", "expected \"ClipTextEncoder\""),
            ("\"n_layers\"", "\"n_layer\"", "n_layer"),
            ("\"n_layers\": 2", "\"n_layers\": 3", "encoder.layers.2"),
            ("\"embed_dim\": 12", "\"embed_dim\": 13", "text_projection.weight"),
            ("\"n_heads\": 4", "\"n_heads\": 3", "n_heads"),
            ("\"n_layers\": 2", "\"n_layers\": 1000000000000", "n_layers"),
        ] {
            assert!(text.contains(from), "{text}");
            std::fs::write(&path, text.replace(from, to)).unwrap();
            let error = ClipTextEncoder::load(dir.path(), &Device::flex()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let missing = ClipTextEncoder::load(dir.path().join("none"), &Device::flex()).unwrap_err();
        assert!(matches!(missing, Error::Io { .. }));
    }
}
