//! The encoders as parts of a diffusers pipeline: the folders `text_encoder` and `tokenizer`, `image_encoder` and
//! `feature_extractor`.

use std::path::Path;

use burn::prelude::Device;
use dalle2_core::diffusers::IndexEntry;
use dalle2_core::text::ClipTokenizer;
use dalle2_core::{ConfigError, Error, FloatType, Result};

use crate::{ClipImageEncoder, ClipTextEncoder, ImageProcessor};

const TEXT: &str = "text_encoder";
const TOKENIZER: &str = "tokenizer";
const IMAGE: &str = "image_encoder";
const PROCESSOR: &str = "feature_extractor";
const LIBRARY: &str = "transformers";

impl ClipTextEncoder {
    /// Reads the folders `text_encoder` and `tokenizer` of a diffusers pipeline. Captions are padded as the tokenizer's
    /// files say.
    ///
    /// # Errors
    /// When a file is missing or damaged, the configuration is of another class or has values that this model does not
    /// know, the tensors are not those of the configuration, or the tokenizer does not fit the model.
    pub fn load_diffusers(root: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let (dir, tokenizer_dir) = (root.as_ref().join(TEXT), root.as_ref().join(TOKENIZER));
        let tokenizer = ClipTokenizer::from_dir(&tokenizer_dir)?;
        let encoder = Self::load_pretrained(dir, device)?;
        let config = encoder.config();
        if tokenizer.vocab_size() > config.vocab_size {
            let message = format!(
                "the tokenizer has {} tokens, the text encoder embeds {}",
                tokenizer.vocab_size(),
                config.vocab_size
            );
            return Err(Error::format(&tokenizer_dir, message));
        }
        if let Some(length) = tokenizer.max_length().filter(|length| *length != config.context_length) {
            let message = format!("`model_max_length` is {length}, the text encoder reads {}", config.context_length);
            return Err(Error::format(&tokenizer_dir, message));
        }
        let pad = tokenizer.pad_token();
        let named = |e: Error| Error::format(&tokenizer_dir, e.to_string());
        encoder.with_tokenizer(tokenizer).with_pad_token(pad).map_err(named)
    }
}

impl ClipImageEncoder {
    /// Reads the folders `image_encoder` and `feature_extractor` of a diffusers pipeline; without the second one, images
    /// are prepared as CLIP does it.
    ///
    /// # Errors
    /// When a file is missing or damaged, the configuration is of another class or has values that this model does not
    /// know, or the tensors are not those of the configuration.
    pub fn load_diffusers(root: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let encoder = Self::load_pretrained(root.as_ref().join(IMAGE), device)?;
        let processor = root.as_ref().join(PROCESSOR);
        match processor.is_dir() {
            true => {
                let named = |e: Error| Error::format(&processor, e.to_string());
                encoder.with_processor(ImageProcessor::load(&processor)?).map_err(named)
            }
            false => Ok(encoder),
        }
    }
}

/// What keeps a text encoder from being one of transformers.
pub(crate) fn text_faults(encoder: &ClipTextEncoder) -> Vec<String> {
    let restricted = encoder.config().vocabulary.as_ref().map(|ids| {
        let expected = "transformers has no restricted vocabulary: train with all tokens";
        ConfigError::new("vocabulary", format!("[{} tokens]", ids.len()), expected)
    });
    restricted.iter().map(|fault| format!("text encoder: {fault}")).collect()
}

/// Writes the text encoder's folders.
pub(crate) fn save_text(
    encoder: &ClipTextEncoder,
    tokenizer: &ClipTokenizer,
    root: &Path,
    float_type: FloatType,
) -> Result<Vec<IndexEntry>> {
    let config = encoder.config();
    encoder.save_pretrained(root.join(TEXT), float_type)?;
    let class = tokenizer.save(root.join(TOKENIZER), config.context_length, config.pad_token)?;
    Ok(vec![
        IndexEntry::new(TEXT, LIBRARY, ClipTextEncoder::PRETRAINED_CLASS),
        IndexEntry::new(TOKENIZER, LIBRARY, class),
    ])
}

/// Writes the image encoder's folders.
pub(crate) fn save_image(encoder: &ClipImageEncoder, root: &Path, float_type: FloatType) -> Result<Vec<IndexEntry>> {
    encoder.save_pretrained(root.join(IMAGE), float_type)?;
    let clips_own = || ImageProcessor::new(encoder.config());
    encoder.processor().cloned().unwrap_or_else(clips_own).save(root.join(PROCESSOR))?;
    Ok(vec![
        IndexEntry::new(IMAGE, LIBRARY, ClipImageEncoder::PRETRAINED_CLASS),
        IndexEntry::new(PROCESSOR, LIBRARY, "CLIPImageProcessor"),
    ])
}
