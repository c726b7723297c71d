//! The towers as parts of a pipeline directory of the reference implementation: `CLIPTextModelWithProjection` and
//! `CLIPVisionModelWithProjection`.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::prelude::Device;
use dalle2_core::store::{self, CONFIG_FILE, WEIGHTS_FILE, Weights, read_json, write_json};
use dalle2_core::{Error, FloatType, Result};
use serde_json::{Map, Value};

use super::config::{TextJson, VisionJson, dtype_name, text_json, vision_json};
use crate::import::{text_tensor_name, vision_tensor_name};
use crate::{ClipImageEncoder, ClipTextEncoder, ImageProcessor};

/// Names that a tower's weights may have.
pub(super) const WEIGHT_NAMES: [&str; 1] = ["model"];

impl ClipTextEncoder {
    /// Class name in the reference implementation.
    pub const PRETRAINED_CLASS: &'static str = "CLIPTextModelWithProjection";

    /// Reads a directory of the reference implementation: `config.json` in transformers' form and the weights under
    /// any of their names (see [`find_weights`](dalle2_core::store::find_weights)).
    ///
    /// The tokenizer is OpenAI's until [`with_tokenizer`](Self::with_tokenizer) gives it the one of the checkpoint.
    ///
    /// # Errors
    /// When a file is missing or damaged, the configuration is of another class or has values that this model does not
    /// know, or the tensors are not those of the configuration.
    pub fn load_pretrained(dir: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let dir = dir.as_ref();
        let path = dir.join(CONFIG_FILE);
        let source = read_source(&path, Self::PRETRAINED_CLASS, "clip_text_model")?;
        let json: TextJson = read_json(&path)?;
        let config = json.config(None).map_err(|e| Error::format(&path, e.to_string()))?;
        let model = store::load_module_from(config.init(device), &open(dir)?, &text_tensor_name)?;
        Ok(Self::new(config, &model)?.with_source(source))
    }

    /// Writes a directory that the reference implementation opens. What was read from one is written as it was.
    ///
    /// # Errors
    /// When the vocabulary is restricted, which the reference implementation does not know; when a file cannot be
    /// written or a weight is not finite in `float_type`.
    pub fn save_pretrained(&self, dir: impl AsRef<Path>, float_type: FloatType) -> Result<()> {
        if self.config().vocabulary.is_some() {
            let message = "this text encoder has a restricted vocabulary, which no class of transformers can express";
            return Err(Error::format(dir.as_ref(), message));
        }
        let json = match self.source() {
            Some(source) => source.clone(),
            None => text_json(self.config()),
        };
        write_tower(dir.as_ref(), json, Self::PRETRAINED_CLASS, float_type, self.model(), &text_tensor_name)
    }
}

impl ClipImageEncoder {
    /// Class name in the reference implementation.
    pub const PRETRAINED_CLASS: &'static str = "CLIPVisionModelWithProjection";

    /// Reads a directory of the reference implementation, see [`ClipTextEncoder::load_pretrained`].
    ///
    /// Images are prepared as CLIP does it until [`with_processor`](Self::with_processor) gives it the checkpoint's way.
    ///
    /// # Errors
    /// As [`ClipTextEncoder::load_pretrained`].
    pub fn load_pretrained(dir: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let dir = dir.as_ref();
        let path = dir.join(CONFIG_FILE);
        let source = read_source(&path, Self::PRETRAINED_CLASS, "clip_vision_model")?;
        let json: VisionJson = read_json(&path)?;
        let config = json.config(None).map_err(|e| Error::format(&path, e.to_string()))?;
        let model = store::load_module_from(config.init(device), &open(dir)?, &vision_tensor_name)?;
        let processor = ImageProcessor::new(&config);
        Self::new(config, &model)?.with_source(source).with_processor(processor)
    }

    /// Writes a directory that the reference implementation opens. What was read from one is written as it was.
    ///
    /// # Errors
    /// When a file cannot be written or a weight is not finite in `float_type`.
    pub fn save_pretrained(&self, dir: impl AsRef<Path>, float_type: FloatType) -> Result<()> {
        let json = match self.source() {
            Some(source) => source.clone(),
            None => vision_json(self.config()),
        };
        write_tower(dir.as_ref(), json, Self::PRETRAINED_CLASS, float_type, self.model(), &vision_tensor_name)
    }
}

/// The configuration as it stands in the file, if it is of the class.
fn read_source(path: &Path, class: &str, model_type: &str) -> Result<Map<String, Value>> {
    let source: Map<String, Value> = read_json(path)?;
    let named = match source.get("architectures") {
        Some(Value::Array(names)) => names.iter().any(|name| name == class),
        None | Some(Value::Null) => source.get("model_type").is_none_or(|found| found == model_type),
        Some(_) => false,
    };
    match named {
        true => Ok(source),
        false => {
            let found = ["architectures", "model_type"].map(|key| source.get(key).unwrap_or(&Value::Null).to_string());
            let message =
                format!("`architectures` is {} of `model_type` {}, expected [\"{class}\"]", found[0], found[1]);
            Err(Error::format(path, message))
        }
    }
}

/// The weights without the integer buffers that older versions saved.
pub(super) fn open(dir: &Path) -> Result<Weights> {
    let mut weights = Weights::find(dir, &WEIGHT_NAMES)?;
    weights.ignore(|name| name.ends_with("embeddings.position_ids"));
    Ok(weights)
}

fn write_tower<M: Module>(
    dir: &Path,
    mut json: Map<String, Value>,
    class: &str,
    float_type: FloatType,
    model: &M,
    rename: &dyn Fn(&str) -> String,
) -> Result<()> {
    json.entry("architectures").or_insert_with(|| Value::from(vec![class]));
    set_dtype(&mut json, float_type);
    store::save_module_as(model, dir.join(WEIGHTS_FILE), float_type, &BTreeMap::new(), rename)?;
    write_json(dir.join(CONFIG_FILE), &json)
}

/// The element type under its present name, or under the former one where a file has that.
pub(super) fn set_dtype(json: &mut Map<String, Value>, float_type: FloatType) {
    let key = if json.contains_key("torch_dtype") { "torch_dtype" } else { "dtype" };
    json.insert(key.into(), dtype_name(float_type).into());
}
