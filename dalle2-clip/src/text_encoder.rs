//! The trained text tower with its tokenizer, as a stage of a pipeline.

use std::collections::BTreeMap;
use std::path::Path;

use burn::prelude::*;
use dalle2_core::diffusers::IndexEntry;
use dalle2_core::store::{self, CONFIG_FILE, WEIGHTS_FILE};
use dalle2_core::text::{ClipTokenizer, PadWith};
use dalle2_core::{Component, Error, FloatType, Result, TextCondition, TextEncoder, TokenMask, on_pool};
use serde_json::{Map, Value};

use crate::diffusers;
use crate::import::text_tensor_name;
use crate::{Clip, ClipConfig, TextTransformer, TextTransformerConfig};

/// Turns captions into conditions with CLIP's text tower.
#[derive(Debug)]
pub struct ClipTextEncoder {
    config: TextTransformerConfig,
    model: TextTransformer,
    tokenizer: ClipTokenizer,
    device: Device,
    /// The configuration of the reference implementation's form that this encoder was read from.
    source: Option<Map<String, Value>>,
}

impl ClipTextEncoder {
    /// Class name on disk.
    pub const CLASS: &'static str = "ClipTextEncoder";

    /// From a model of `config`, with the tokenizer of OpenAI's CLIP. Gradients are switched off.
    ///
    /// # Errors
    /// When the configuration is not valid.
    pub fn new(config: TextTransformerConfig, model: &TextTransformer) -> Result<Self> {
        config.validate()?;
        let model = model.valid();
        let device = model.position_embedding.weight.val().device();
        Ok(Self { config, model, tokenizer: ClipTokenizer::openai()?, device, source: None })
    }

    /// Replaces the tokenizer, for models that were trained with another vocabulary.
    pub fn with_tokenizer(mut self, tokenizer: ClipTokenizer) -> Self {
        self.tokenizer = tokenizer;
        self
    }

    /// Replaces the token that fills the positions behind a caption.
    ///
    /// # Errors
    /// When the model has no such token.
    pub fn with_pad_token(mut self, pad_token: u32) -> Result<Self> {
        self.config.pad_token = pad_token;
        self.config.validate()?;
        Ok(self)
    }

    pub(crate) fn with_source(mut self, source: Map<String, Value>) -> Self {
        self.source = Some(source);
        self
    }

    pub(crate) fn source(&self) -> Option<&Map<String, Value>> {
        self.source.as_ref()
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &ClipTokenizer {
        &self.tokenizer
    }

    /// From the text tower of a CLIP.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn from_clip(config: &ClipConfig, clip: &Clip) -> Result<Self> {
        Self::new(config.text.clone(), &clip.text)
    }

    /// Reads `config.json` and `model.safetensors` from a directory.
    ///
    /// # Errors
    /// When a file is missing or damaged, or the weights are not those of the configuration.
    pub fn load(dir: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let dir = dir.as_ref();
        let config: TextTransformerConfig = store::read_config(dir, Self::CLASS)?;
        config.validate().map_err(|e| Error::format(dir.join(CONFIG_FILE), e.to_string()))?;
        let model = store::load_module_as(config.init(device), dir.join(WEIGHTS_FILE), &text_tensor_name)?;
        Self::new(config, &model)
    }

    /// The configuration of the text tower.
    pub fn config(&self) -> &TextTransformerConfig {
        &self.config
    }

    /// The text tower.
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
    /// As [`encode`](TextEncoder::encode), but captions that do not fit the context lose their end: for training data.
    ///
    /// # Errors
    /// When a vocabulary that was read from a file cannot express a caption.
    pub fn encode_truncated(&self, captions: &[&str]) -> Result<TextCondition> {
        self.encode_tokens(&tokenize(&self.tokenizer, &self.config, captions, Overlong::Cut)?)
    }

    fn encode_tokens(&self, items: &[(Vec<u32>, usize)]) -> Result<TextCondition> {
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
        self.encode_tokens(&tokenize(&self.tokenizer, &self.config, captions, Overlong::Refuse)?)
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

/// What becomes of a caption that does not fit the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overlong {
    /// It is an error: a person would not know what was left out.
    Refuse,
    /// It loses its end: a data set has such captions, and training goes on.
    Cut,
}

/// Token ids of each caption, padded to the context, with the number of them that are text.
pub(crate) fn tokenize(
    tokenizer: &ClipTokenizer,
    config: &TextTransformerConfig,
    captions: &[&str],
    overlong: Overlong,
) -> Result<Vec<(Vec<u32>, usize)>> {
    captions
        .iter()
        .map(|caption| {
            let (mut ids, length) = match overlong {
                Overlong::Refuse => tokenizer.encode_padded(caption, config.context_length, PadWith::EndOfText)?,
                Overlong::Cut => tokenizer.encode_truncated(caption, config.context_length, PadWith::EndOfText)?,
            };
            ids[length..].fill(config.pad_token);
            Ok((ids, length))
        })
        .collect()
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
        let kept: Vec<bool> = condition.mask.keep().into_data().iter::<bool>().collect();
        let lengths: Vec<usize> = kept.chunks(8).map(|row| row.iter().filter(|kept| **kept).count()).collect();
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
    fn a_caption_that_is_too_long_is_an_error() {
        let error = encoder().encode(&["red apple red apple red apple red apple"]).unwrap_err();
        assert!(error.to_string().contains("red apple"), "{error}");
    }

    #[test]
    fn for_training_a_caption_that_is_too_long_loses_its_end() {
        let encoder = encoder();
        // Six tokens fit beside start and end.
        let cut = encoder.encode_truncated(&["red apple red apple red apple blue blue blue"]).unwrap();
        let whole = encoder.encode(&["red apple red apple red apple"]).unwrap();
        cut.tokens.into_data().assert_eq(&whole.tokens.into_data(), true);
    }

    #[test]
    fn saved_and_loaded_is_the_same_and_a_wrong_directory_is_refused() {
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
