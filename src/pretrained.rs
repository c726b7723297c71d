//! Pipelines as directories: `model_index.json` and a folder per part.

use std::collections::BTreeMap;
use std::path::Path;

use burn::prelude::Device;
use dalle2_clip::{ClipImageEncoder, ClipTextEncoder};
use dalle2_core::store::{Precision, read_json, write_json};
use dalle2_core::{Component, Error, Result};
use dalle2_decoder::{DiffusionUpsampler, UnclipDecoder};
use dalle2_prior::{AutoregressivePrior, DiffusionPrior};
use serde_json::{Value, json};

use crate::{Pipeline, PipelineBuilder};

/// Name of the file that lists the parts.
const INDEX_FILE: &str = "model_index.json";
/// Class name of a pipeline directory written by this library.
const CLASS: &str = "Dalle2Pipeline";
/// Library name beside the class names of the parts.
const LIBRARY: &str = "dalle2";

impl Pipeline {
    /// Loads a pipeline from a directory that [`Pipeline::save_pretrained`] or the training examples wrote.
    ///
    /// # Errors
    /// When the directory, the index or a part is missing or damaged, a class is not known, tensors do not match their
    /// configuration, or the parts do not fit each other.
    pub fn from_pretrained(dir: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let dir = dir.as_ref();
        let path = dir.join(INDEX_FILE);
        if !path.is_file() {
            return Err(Error::format(dir, format!("is not a pipeline directory: it has no {INDEX_FILE}")));
        }
        let mut index: BTreeMap<String, Value> = read_json(&path)?;
        let class = index.remove("_class_name");
        if class.as_ref().and_then(Value::as_str) != Some(CLASS) {
            let found = class.map_or("missing".to_owned(), |class| class.to_string());
            return Err(Error::format(&path, format!("`_class_name` is {found}, expected \"{CLASS}\"")));
        }
        let mut builder = Self::builder().device(device);
        for (name, entry) in index.into_iter().filter(|(name, _)| !name.starts_with('_')) {
            let class = match entry.as_array().map(Vec::as_slice) {
                Some([Value::String(library), Value::String(class)]) if library == LIBRARY => class.clone(),
                _ => {
                    let message = format!("`{name}` is {entry}, expected [\"{LIBRARY}\", a class name]");
                    return Err(Error::format(&path, message));
                }
            };
            builder = load_part(builder, &path, &dir.join(&name), &name, &class, device)?;
        }
        builder.build()
    }

    /// Writes the pipeline to a directory: `model_index.json` and a folder per part, in 32-bit floats.
    ///
    /// # Errors
    /// As [`Pipeline::save_pretrained_as`].
    pub fn save_pretrained(&self, dir: impl AsRef<Path>) -> Result<()> {
        self.save_pretrained_as(dir, Precision::F32)
    }

    /// Like [`Pipeline::save_pretrained`], with weights in `precision`.
    ///
    /// The index is written last, so a directory that could not be finished is not taken for a pipeline.
    ///
    /// # Errors
    /// When a file cannot be written, or a part has no form on disk.
    pub fn save_pretrained_as(&self, dir: impl AsRef<Path>, precision: Precision) -> Result<()> {
        let dir = dir.as_ref();
        let mut index = serde_json::Map::new();
        index.insert("_class_name".into(), CLASS.into());
        index.insert("_dalle2_version".into(), env!("CARGO_PKG_VERSION").into());
        let mut parts: Vec<(String, &dyn Component)> = vec![
            ("text_encoder".into(), &*self.text_encoder),
            ("prior".into(), &*self.prior),
            ("decoder".into(), &*self.decoder),
        ];
        if let Some(image_encoder) = &self.image_encoder {
            parts.push(("image_encoder".into(), &**image_encoder));
        }
        for (i, upsampler) in self.upsamplers.iter().enumerate() {
            parts.push((format!("upsampler_{}", i + 1), &**upsampler));
        }
        for (name, part) in parts {
            part.save(&dir.join(&name), precision)?;
            index.insert(name, json!([LIBRARY, part.class_name()]));
        }
        write_json(dir.join(INDEX_FILE), &index)
    }
}

/// Adds a part to a pipeline directory, or replaces it there: this is how training runs put a pipeline together.
///
/// `name` is the part's folder: `text_encoder`, `image_encoder`, `prior`, `decoder`, `upsampler_1`, `upsampler_2`, …
///
/// # Errors
/// When a file cannot be written, or the index that is there is not one of this library.
pub fn install_part(dir: impl AsRef<Path>, name: &str, part: &dyn Component, precision: Precision) -> Result<()> {
    let dir = dir.as_ref();
    let path = dir.join(INDEX_FILE);
    let mut index: BTreeMap<String, Value> = if path.exists() { read_json(&path)? } else { BTreeMap::new() };
    match index.get("_class_name").map(Value::as_str) {
        None if index.is_empty() => {}
        Some(Some(CLASS)) => {}
        _ => return Err(Error::format(&path, format!("is not the index of a {CLASS}: choose another directory"))),
    }
    part.save(&dir.join(name), precision)?;
    index.insert("_class_name".into(), CLASS.into());
    index.insert("_dalle2_version".into(), env!("CARGO_PKG_VERSION").into());
    index.insert(name.to_owned(), json!([LIBRARY, part.class_name()]));
    write_json(&path, &index)
}

fn load_part(
    builder: PipelineBuilder,
    index: &Path,
    dir: &Path,
    name: &str,
    class: &str,
    device: &Device,
) -> Result<PipelineBuilder> {
    let upsampler = name.strip_prefix("upsampler_").is_some_and(|number| number.parse::<u8>().is_ok());
    Ok(match (name, class) {
        ("text_encoder", ClipTextEncoder::CLASS) => builder.text_encoder(ClipTextEncoder::load(dir, device)?),
        ("image_encoder", ClipImageEncoder::CLASS) => builder.image_encoder(ClipImageEncoder::load(dir, device)?),
        ("prior", DiffusionPrior::CLASS) => builder.prior(DiffusionPrior::load(dir, device)?),
        ("prior", AutoregressivePrior::CLASS) => builder.prior(AutoregressivePrior::load(dir, device)?),
        ("decoder", UnclipDecoder::CLASS) => builder.decoder(UnclipDecoder::load(dir, device)?),
        (_, DiffusionUpsampler::CLASS) if upsampler => builder.upsampler(DiffusionUpsampler::load(dir, device)?),
        ("text_encoder" | "image_encoder" | "prior" | "decoder", _) => {
            return Err(Error::format(index, format!("`{name}` has the unknown class {class:?}")));
        }
        _ if upsampler => return Err(Error::format(index, format!("`{name}` has the unknown class {class:?}"))),
        _ => {
            let known = "text_encoder, image_encoder, prior, decoder, upsampler_1, upsampler_2, …";
            return Err(Error::format(index, format!("`{name}` is not a part; known are {known}")));
        }
    })
}
