//! Pipelines as directories: `model_index.json` and a folder per part.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::prelude::Device;
use dalle2_clip::{ClipImageEncoder, ClipTextEncoder};
use dalle2_core::store::{PipelineDir, read_json, write_json};
use dalle2_core::{Component, Error, FloatType, LoadOptions, Residency, Result};
use dalle2_decoder::{DiffusionUpsampler, UnclipDecoder};
use dalle2_prior::{AutoregressivePrior, DiffusionPrior};
use serde_json::{Map, Value, json};

use crate::on_demand::OnDemand;
use crate::{Pipeline, PipelineBuilder, diffusers};

/// Name of the file that lists the parts.
pub(crate) const INDEX_FILE: &str = PipelineDir::INDEX_FILE;
/// Class name of a pipeline directory written by this library.
const CLASS: &str = PipelineDir::CLASS;
/// Library name beside the class names of the parts.
const LIBRARY: &str = PipelineDir::LIBRARY;

impl Pipeline {
    /// Loads a pipeline directory: of [`Pipeline::save_pretrained`] or of training, or one in the layout of diffusers with an
    /// `UnCLIPPipeline` or an `UnCLIPImageVariationPipeline`, such as Karlo.
    ///
    /// # Errors
    /// [`Error::NotAPipeline`] if there is no `model_index.json`; otherwise if a part is missing or damaged, a class or a
    /// setting is unknown, tensors differ from their configuration, or the parts are incompatible.
    pub fn from_pretrained(dir: impl AsRef<Path>, device: &Device) -> Result<Self> {
        Self::from_pretrained_with(dir, &LoadOptions::new(device))
    }

    /// As [`Pipeline::from_pretrained`], with options: the residency of each stage in memory, and the float type of the
    /// diffusion networks.
    ///
    /// ```no_run
    /// use dalle2::{Device, FloatType, LoadOptions, Pipeline, Residency};
    ///
    /// # fn main() -> dalle2::Result<()> {
    /// let options = LoadOptions::new(&Device::default()).residency(Residency::OneStage).compute_type(FloatType::F16);
    /// let pipeline = Pipeline::from_pretrained_with("karlo-v1-alpha", &options)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Pipeline::from_pretrained`], and if the device does not support the float type.
    pub fn from_pretrained_with(dir: impl AsRef<Path>, options: &LoadOptions) -> Result<Self> {
        let (builder, index) = load(dir.as_ref(), options)?;
        Ok(Self { index: index.map(Arc::new), ..builder.build()? })
    }

    /// Writes the pipeline to a directory: `model_index.json` and a folder per part, in 32-bit floats.
    ///
    /// A pipeline that diffusers can express is written in its layout, with its class and tensor names, so that diffusers can
    /// load it; others are written with class names of this library.
    ///
    /// # Errors
    /// As [`Pipeline::save_pretrained_as`].
    pub fn save_pretrained(&self, dir: impl AsRef<Path>) -> Result<()> {
        self.save_pretrained_as(dir, FloatType::F32)
    }

    /// Like [`Pipeline::save_pretrained`], with weights in `float_type`.
    ///
    /// The index is written last, so an incomplete directory is not a pipeline.
    ///
    /// # Errors
    /// If a file cannot be written, or a part has no file format.
    pub fn save_pretrained_as(&self, dir: impl AsRef<Path>, float_type: FloatType) -> Result<()> {
        let dir = dir.as_ref();
        if self.diffusers_faults().is_empty() {
            return self.save_diffusers(dir, float_type);
        }
        let mut index = Map::new();
        index.insert("_class_name".into(), CLASS.into());
        index.insert("_dalle2_version".into(), env!("CARGO_PKG_VERSION").into());
        let mut parts: Vec<(String, &dyn Component)> =
            vec![("text_encoder".into(), &*self.text_encoder), ("decoder".into(), &*self.decoder)];
        if let Some(prior) = &self.prior {
            parts.push(("prior".into(), &**prior));
        }
        if let Some(image_encoder) = &self.image_encoder {
            parts.push(("image_encoder".into(), &**image_encoder));
        }
        for (i, upsampler) in self.upsamplers.iter().enumerate() {
            parts.push((format!("upsampler_{}", i + 1), &**upsampler));
        }
        for (name, part) in parts {
            part.save(&dir.join(&name), float_type)?;
            index.insert(name, json!([LIBRARY, part.class_name()]));
        }
        write_json(dir.join(INDEX_FILE), &index)
    }
}

/// Loads the parts of a directory; for one in the layout of diffusers, the index too.
pub(crate) fn load(dir: &Path, options: &LoadOptions) -> Result<(PipelineBuilder, Option<Map<String, Value>>)> {
    let path = dir.join(INDEX_FILE);
    if !path.is_file() {
        return Err(Error::NotAPipeline { path: dir.to_owned(), exists: dir.exists() });
    }
    options.validate()?;
    let index: Map<String, Value> = read_json(&path)?;
    let class = match index.get("_class_name") {
        Some(Value::String(class)) => class.as_str(),
        other => {
            let value = other.map_or("missing".to_owned(), Value::to_string);
            return Err(Error::format(&path, format!("`_class_name` is {value}, expected {}", known_classes())));
        }
    };
    if diffusers::is_diffusers(class) {
        return Ok((diffusers::load(dir, &index, options)?, Some(index)));
    }
    if class != CLASS {
        return Err(Error::format(&path, format!("`_class_name` is {class:?}, expected {}", known_classes())));
    }
    let mut builder = PipelineBuilder::default().device(&options.device);
    for (name, entry) in index.iter().filter(|(name, _)| !name.starts_with('_')) {
        let class = match entry.as_array().map(Vec::as_slice) {
            Some([Value::String(library), Value::String(class)]) if library == LIBRARY => class,
            _ => {
                let message = format!("`{name}` is {entry}, expected [\"{LIBRARY}\", a class name]");
                return Err(Error::format(&path, message));
            }
        };
        let part = Part { index: &path, dir: dir.join(name), name, class };
        builder = part.load(builder, options)?;
    }
    Ok((builder, None))
}

/// The supported classes of pipelines.
fn known_classes() -> String {
    format!("\"{CLASS}\", or \"UnCLIPPipeline\" or \"UnCLIPImageVariationPipeline\" of diffusers")
}

/// An entry of the index.
struct Part<'a> {
    index: &'a Path,
    dir: PathBuf,
    name: &'a str,
    class: &'a str,
}

impl Part<'_> {
    fn load(self, builder: PipelineBuilder, options: &LoadOptions) -> Result<PipelineBuilder> {
        let Self { index, dir, name, class } = self;
        let upsampler = name.strip_prefix("upsampler_").is_some_and(|number| number.parse::<u8>().is_ok());
        let (device, one_stage) = (options.device.clone(), options.residency == Residency::OneStage);
        Ok(match (name, class) {
            ("text_encoder", ClipTextEncoder::CLASS) if one_stage => {
                builder.text_encoder(OnDemand::text(move || ClipTextEncoder::load(&dir, &device))?)
            }
            ("image_encoder", ClipImageEncoder::CLASS) if one_stage => {
                builder.image_encoder(OnDemand::image(move || ClipImageEncoder::load(&dir, &device))?)
            }
            ("text_encoder", ClipTextEncoder::CLASS) => builder.text_encoder(ClipTextEncoder::load(dir, &device)?),
            ("image_encoder", ClipImageEncoder::CLASS) => builder.image_encoder(ClipImageEncoder::load(dir, &device)?),
            ("prior", DiffusionPrior::CLASS) => builder.prior(DiffusionPrior::load_with(dir, options)?),
            ("prior", AutoregressivePrior::CLASS) => builder.prior(AutoregressivePrior::load(dir, &device)?),
            ("decoder", UnclipDecoder::CLASS) => builder.decoder(UnclipDecoder::load_with(dir, options)?),
            (_, DiffusionUpsampler::CLASS) if upsampler => {
                builder.upsampler(DiffusionUpsampler::load_with(dir, options)?)
            }
            ("text_encoder" | "image_encoder" | "prior" | "decoder", _) => {
                return Err(unknown_class(index, name, class));
            }
            _ if upsampler => return Err(unknown_class(index, name, class)),
            _ => {
                let known = "text_encoder, image_encoder, prior, decoder, upsampler_1, upsampler_2, …";
                return Err(Error::format(index, format!("`{name}` is not a part; known are {known}")));
            }
        })
    }
}

fn unknown_class(index: &Path, name: &str, class: &str) -> Error {
    let known = match name {
        "text_encoder" => ClipTextEncoder::CLASS.to_owned(),
        "image_encoder" => ClipImageEncoder::CLASS.to_owned(),
        "prior" => format!("{} or {}", DiffusionPrior::CLASS, AutoregressivePrior::CLASS),
        "decoder" => UnclipDecoder::CLASS.to_owned(),
        _ => DiffusionUpsampler::CLASS.to_owned(),
    };
    Error::format(index, format!("`{name}` has the unknown class {class:?}, expected {known}"))
}
