//! Loads the encoders from the layouts of this library, of transformers and of pipelines, and saves them in
//! transformers' layout.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::prelude::Device;
use dalle2_core::store::{self, CONFIG_FILE, WEIGHTS_FILE, Weights, read_json, write_json};
use dalle2_core::text::ClipTokenizer;
use dalle2_core::{Error, FloatType, Result};
use serde_json::{Map, Value};

use super::transformers::{TextJson, VisionJson, dtype_name, text_json, vision_json};
use crate::diffusers::{IMAGE_ENCODER, IMAGE_PROCESSOR, TEXT_ENCODER, TOKENIZER};
use crate::import::{text_tensor_name, vision_tensor_name};
use crate::{ClipImageEncoder, ClipTextEncoder, ImageProcessor, TextTransformerConfig, VisionTransformerConfig};

/// Stems of the weights files of an encoder.
const WEIGHT_STEMS: [&str; 1] = ["model"];

/// Loads a text encoder, see [`ClipTextEncoder::load`].
pub(crate) fn load_text_encoder(dir: &Path, device: &Device) -> Result<ClipTextEncoder> {
    let nested = dir.join(TEXT_ENCODER);
    if dir.join(CONFIG_FILE).is_file() || !nested.is_dir() {
        let encoder = load_text_model(dir, device)?;
        let is_foreign = encoder.source().is_some();
        return match ClipTokenizer::find(dir)? {
            Some(tokenizer) if is_foreign => with_tokenizer(encoder, tokenizer, dir),
            _ => Ok(encoder),
        };
    }
    let encoder = load_text_model(&nested, device)?;
    if encoder.source().is_none() {
        return Ok(encoder);
    }
    let tokenizer_dir = dir.join(TOKENIZER);
    let tokenizer = ClipTokenizer::from_dir(&tokenizer_dir)?;
    let context = encoder.config().context_length;
    if let Some(length) = tokenizer.max_length().filter(|length| *length != context) {
        let message = format!("`model_max_length` is {length}, the context of the text encoder is {context}");
        return Err(Error::format(&tokenizer_dir, message));
    }
    with_tokenizer(encoder, tokenizer, &tokenizer_dir)
}

fn with_tokenizer(encoder: ClipTextEncoder, tokenizer: ClipTokenizer, dir: &Path) -> Result<ClipTextEncoder> {
    encoder.with_tokenizer(tokenizer).map_err(|e| Error::format(dir, e.to_string()))
}

fn load_text_model(dir: &Path, device: &Device) -> Result<ClipTextEncoder> {
    let path = dir.join(CONFIG_FILE);
    let source: Map<String, Value> = read_json(&path)?;
    let named = |e: dalle2_core::ConfigError| Error::format(&path, e.to_string());
    if source.contains_key("_class_name") {
        let config: TextTransformerConfig = store::read_config(dir, ClipTextEncoder::CLASS)?;
        config.validate().map_err(named)?;
        let model = store::load_module_as(config.init(device), dir.join(WEIGHTS_FILE), &text_tensor_name)?;
        return ClipTextEncoder::new(config, &model);
    }
    check_class(&path, &source, ClipTextEncoder::PRETRAINED_CLASS, "clip_text_model")?;
    let json: TextJson = read_json(&path)?;
    let config = json.config(None).map_err(named)?;
    let model = store::load_module_from(config.init(device), &open_weights(dir)?, &text_tensor_name)?;
    Ok(ClipTextEncoder::new(config, &model)?.with_source(source))
}

/// Loads an image encoder, see [`ClipImageEncoder::load`].
pub(crate) fn load_image_encoder(dir: &Path, device: &Device) -> Result<ClipImageEncoder> {
    let nested = dir.join(IMAGE_ENCODER);
    if dir.join(CONFIG_FILE).is_file() || !nested.is_dir() {
        return with_processor(load_image_model(dir, device)?, dir);
    }
    with_processor(load_image_model(&nested, device)?, &dir.join(IMAGE_PROCESSOR))
}

fn with_processor(encoder: ClipImageEncoder, dir: &Path) -> Result<ClipImageEncoder> {
    if encoder.source().is_none() {
        return Ok(encoder);
    }
    let processor =
        if ImageProcessor::is_in(dir) { ImageProcessor::load(dir)? } else { ImageProcessor::new(encoder.config()) };
    encoder.with_processor(processor).map_err(|e| Error::format(dir, e.to_string()))
}

fn load_image_model(dir: &Path, device: &Device) -> Result<ClipImageEncoder> {
    let path = dir.join(CONFIG_FILE);
    let source: Map<String, Value> = read_json(&path)?;
    let named = |e: dalle2_core::ConfigError| Error::format(&path, e.to_string());
    if source.contains_key("_class_name") {
        let config: VisionTransformerConfig = store::read_config(dir, ClipImageEncoder::CLASS)?;
        config.validate().map_err(named)?;
        let model = store::load_module_as(config.init(device), dir.join(WEIGHTS_FILE), &vision_tensor_name)?;
        return ClipImageEncoder::new(config, &model);
    }
    check_class(&path, &source, ClipImageEncoder::PRETRAINED_CLASS, "clip_vision_model")?;
    let json: VisionJson = read_json(&path)?;
    let config = json.config(None).map_err(named)?;
    let model = store::load_module_from(config.init(device), &open_weights(dir)?, &vision_tensor_name)?;
    Ok(ClipImageEncoder::new(config, &model)?.with_source(source))
}

impl ClipTextEncoder {
    /// Class name in transformers.
    pub const PRETRAINED_CLASS: &'static str = "CLIPTextModelWithProjection";

    /// Writes a directory that transformers opens. An encoder that was read from one is written unchanged.
    ///
    /// # Errors
    /// If the vocabulary is restricted, which transformers does not support; if a file cannot be written or a weight is
    /// not finite in `float_type`.
    pub fn save_pretrained(&self, dir: impl AsRef<Path>, float_type: FloatType) -> Result<()> {
        if self.config().vocabulary.is_some() {
            let message = "the text encoder has a restricted vocabulary, which no class of transformers can express";
            return Err(Error::format(dir.as_ref(), message));
        }
        let json = self.source().cloned().unwrap_or_else(|| text_json(self.config()));
        write_encoder(dir.as_ref(), json, Self::PRETRAINED_CLASS, float_type, (self.model(), &text_tensor_name))
    }
}

impl ClipImageEncoder {
    /// Class name in transformers.
    pub const PRETRAINED_CLASS: &'static str = "CLIPVisionModelWithProjection";

    /// Writes a directory that transformers opens. An encoder that was read from one is written unchanged.
    ///
    /// # Errors
    /// If a file cannot be written or a weight is not finite in `float_type`.
    pub fn save_pretrained(&self, dir: impl AsRef<Path>, float_type: FloatType) -> Result<()> {
        let json = self.source().cloned().unwrap_or_else(|| vision_json(self.config()));
        write_encoder(dir.as_ref(), json, Self::PRETRAINED_CLASS, float_type, (self.model(), &vision_tensor_name))
    }
}

/// Checks that a configuration in transformers' form is of `class`.
fn check_class(path: &Path, source: &Map<String, Value>, class: &str, model_type: &str) -> Result<()> {
    let matches = match source.get("architectures") {
        Some(Value::Array(names)) => names.iter().any(|name| name == class),
        None | Some(Value::Null) => source.get("model_type").is_none_or(|actual| actual == model_type),
        Some(_) => false,
    };
    if matches {
        return Ok(());
    }
    let [actual, actual_type] =
        ["architectures", "model_type"].map(|key| source.get(key).unwrap_or(&Value::Null).to_string());
    let message = format!("`architectures` is {actual} of `model_type` {actual_type}, expected [\"{class}\"]");
    Err(Error::format(path, message))
}

/// Opens the weights without the integer buffers that older versions of transformers saved.
pub(super) fn open_weights(dir: &Path) -> Result<Weights> {
    let mut weights = Weights::find(dir, &WEIGHT_STEMS)?;
    weights.ignore(|name| name.ends_with("embeddings.position_ids"));
    Ok(weights)
}

fn write_encoder<M: Module>(
    dir: &Path,
    mut json: Map<String, Value>,
    class: &str,
    float_type: FloatType,
    (model, rename): (&M, &dyn Fn(&str) -> String),
) -> Result<()> {
    json.entry("architectures").or_insert_with(|| Value::from(vec![class]));
    set_dtype(&mut json, float_type);
    store::save_module_as(model, dir.join(WEIGHTS_FILE), float_type, &BTreeMap::new(), rename)?;
    write_json(dir.join(CONFIG_FILE), &json)
}

/// Sets the element type, under the former name of the key where a file has that.
pub(super) fn set_dtype(json: &mut Map<String, Value>, float_type: FloatType) {
    let key = if json.contains_key("torch_dtype") { "torch_dtype" } else { "dtype" };
    json.insert(key.into(), dtype_name(float_type).into());
}
