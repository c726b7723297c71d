//! The encoders as components of a diffusers pipeline: the folders `text_encoder` and `tokenizer`, `image_encoder` and
//! `feature_extractor`.

use std::path::Path;

use dalle2_core::diffusers::IndexEntry;
use dalle2_core::text::ClipTokenizer;
use dalle2_core::{ConfigError, FloatType, Result};

use crate::{ClipImageEncoder, ClipTextEncoder, ImageProcessor};

pub(crate) const TEXT_ENCODER: &str = "text_encoder";
pub(crate) const TOKENIZER: &str = "tokenizer";
pub(crate) const IMAGE_ENCODER: &str = "image_encoder";
pub(crate) const IMAGE_PROCESSOR: &str = "feature_extractor";
/// The Python library of these folders.
const LIBRARY: &str = "transformers";

/// Lists the properties of a text encoder that transformers cannot express.
pub(crate) fn text_faults(encoder: &ClipTextEncoder) -> Vec<String> {
    let restricted = encoder.config().vocabulary.as_ref().map(|ids| {
        let expected = "must be absent: transformers does not support a restricted vocabulary";
        ConfigError::new("vocabulary", format!("[{} tokens]", ids.len()), expected)
    });
    restricted.iter().map(|fault| format!("text encoder: {fault}")).collect()
}

/// Writes the folders of the text encoder and its tokenizer.
pub(crate) fn save_text(
    encoder: &ClipTextEncoder,
    tokenizer: &ClipTokenizer,
    root: &Path,
    float_type: FloatType,
) -> Result<Vec<IndexEntry>> {
    let config = encoder.config();
    encoder.save_pretrained(root.join(TEXT_ENCODER), float_type)?;
    let class = tokenizer.save(root.join(TOKENIZER), config.context_length, config.pad_token)?;
    Ok(vec![
        IndexEntry::new(TEXT_ENCODER, LIBRARY, ClipTextEncoder::PRETRAINED_CLASS),
        IndexEntry::new(TOKENIZER, LIBRARY, class),
    ])
}

/// Writes the folders of the image encoder and its image processor.
pub(crate) fn save_image(encoder: &ClipImageEncoder, root: &Path, float_type: FloatType) -> Result<Vec<IndexEntry>> {
    encoder.save_pretrained(root.join(IMAGE_ENCODER), float_type)?;
    let default = || ImageProcessor::new(encoder.config());
    encoder.processor().cloned().unwrap_or_else(default).save(root.join(IMAGE_PROCESSOR))?;
    Ok(vec![
        IndexEntry::new(IMAGE_ENCODER, LIBRARY, ClipImageEncoder::PRETRAINED_CLASS),
        IndexEntry::new(IMAGE_PROCESSOR, LIBRARY, "CLIPImageProcessor"),
    ])
}
