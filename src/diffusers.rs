//! Pipelines in the layout of diffusers: `UnCLIPPipeline` and `UnCLIPImageVariationPipeline`.

use std::path::Path;

use dalle2_clip::{ClipImageEncoder, ClipTextEncoder};
use dalle2_core::diffusers::{IndexEntry, VERSION};
use dalle2_core::store::write_json;
use dalle2_core::{Component, Error, FloatType, LoadOptions, Residency, Result};
use dalle2_decoder::{DiffusionUpsampler, UnclipDecoder};
use dalle2_prior::DiffusionPrior;
use serde_json::{Map, Value, json};

use crate::on_demand::OnDemand;
use crate::pretrained::INDEX_FILE;
use crate::{Pipeline, PipelineBuilder};

/// Class of pipelines from captions to images.
const TEXT_TO_IMAGE: &str = "UnCLIPPipeline";
/// Class of pipelines from images to variations.
const VARIATION: &str = "UnCLIPImageVariationPipeline";

/// Folders of both classes of pipelines, with the accepted classes of their entries in the index.
const COMMON: [(&str, &[&str]); 8] = [
    ("text_encoder", &["CLIPTextModelWithProjection"]),
    ("tokenizer", &["CLIPTokenizer", "CLIPTokenizerFast"]),
    ("text_proj", &["UnCLIPTextProjModel"]),
    ("decoder", &["UNet2DConditionModel"]),
    ("super_res_first", &["UNet2DModel"]),
    ("super_res_last", &["UNet2DModel"]),
    ("decoder_scheduler", &["UnCLIPScheduler"]),
    ("super_res_scheduler", &["UnCLIPScheduler"]),
];
/// Folders of a pipeline that starts from a caption.
const PRIOR: [(&str, &[&str]); 2] = [("prior", &["PriorTransformer"]), ("prior_scheduler", &["UnCLIPScheduler"])];
/// Folders of a pipeline that starts from an image; optional in one that starts from a caption.
const IMAGE: [(&str, &[&str]); 2] = [
    ("image_encoder", &["CLIPVisionModelWithProjection"]),
    ("feature_extractor", &["CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPFeatureExtractor"]),
];

/// Whether a pipeline of this class is in the layout of diffusers.
pub(crate) fn is_diffusers(class: &str) -> bool {
    [TEXT_TO_IMAGE, VARIATION].contains(&class)
}

/// Loads the parts of a pipeline with this index.
pub(crate) fn load(dir: &Path, index: &Map<String, Value>, options: &LoadOptions) -> Result<PipelineBuilder> {
    let path = dir.join(INDEX_FILE);
    let parts = check_index(&path, index)?;
    let has = |name: &str| parts.contains(&name);
    let mut builder = PipelineBuilder::default().device(&options.device);
    builder = text_encoder(builder, dir, options)?;
    if has("image_encoder") {
        builder = image_encoder(builder, dir, options)?;
    }
    if has("prior") {
        builder = builder.prior(DiffusionPrior::load_diffusers(dir, options)?);
    }
    let decoder = UnclipDecoder::load_diffusers(dir, options)?;
    let upsampler = DiffusionUpsampler::load_diffusers(dir, options)?;
    Ok(builder.decoder(decoder).upsampler(upsampler))
}

/// The parts of an index, all of known classes and none missing.
fn check_index<'a>(path: &Path, index: &'a Map<String, Value>) -> Result<Vec<&'a str>> {
    let class = index.get("_class_name").and_then(Value::as_str).unwrap_or_default();
    let first = if class == VARIATION { IMAGE } else { PRIOR };
    let mut parts = Vec::new();
    let mut faults = Vec::new();
    for (name, entry) in index.iter().filter(|(name, _)| !name.starts_with('_')) {
        let known = COMMON.iter().chain(&PRIOR).chain(&IMAGE).find(|(known, _)| known == name);
        let entry_parts = entry.as_array().map(Vec::as_slice);
        match (known, entry_parts) {
            (_, Some([Value::Null, Value::Null])) => {}
            (None, _) => faults.push(format!("`{name}` = {entry} is not a part of an unCLIP pipeline")),
            (Some((_, classes)), Some([Value::String(library), Value::String(class)])) => {
                if classes.contains(&class.as_str()) && is_library(name, library) {
                    parts.push(name.as_str());
                } else {
                    let expected = classes.join(" or ");
                    faults.push(format!("`{name}` has the unknown class {entry}, expected {expected}"));
                }
            }
            _ => faults.push(format!("`{name}` is {entry}, expected [a library, a class name]")),
        }
    }
    // Entries of a wrong class have been reported already.
    let missing = COMMON.iter().chain(&first).map(|(name, _)| *name).filter(|name| !index.contains_key(*name));
    faults.extend(missing.map(|name| format!("`{name}` is missing, which {class} requires")));
    if !faults.is_empty() {
        return Err(Error::format(path, faults.join("; ")));
    }
    Ok(parts)
}

/// The module of `text_proj` differs between releases of diffusers.
fn is_library(part: &str, library: &str) -> bool {
    match part {
        "text_encoder" | "tokenizer" | "image_encoder" | "feature_extractor" => library == "transformers",
        "text_proj" => library.split('.').next_back() == Some("unclip") || library == "diffusers",
        _ => library == "diffusers",
    }
}

fn text_encoder(builder: PipelineBuilder, dir: &Path, options: &LoadOptions) -> Result<PipelineBuilder> {
    let (dir, device) = (dir.to_owned(), options.device.clone());
    let load = move || ClipTextEncoder::load(&dir, &device);
    Ok(match options.residency {
        Residency::Resident => builder.text_encoder(load()?),
        Residency::OneStage => builder.text_encoder(OnDemand::text(load)?),
    })
}

fn image_encoder(builder: PipelineBuilder, dir: &Path, options: &LoadOptions) -> Result<PipelineBuilder> {
    let (dir, device) = (dir.to_owned(), options.device.clone());
    let load = move || ClipImageEncoder::load(&dir, &device);
    Ok(match options.residency {
        Residency::Resident => builder.image_encoder(load()?),
        Residency::OneStage => builder.image_encoder(OnDemand::image(load)?),
    })
}

impl Pipeline {
    /// Lists the reasons that prevent writing the pipeline in the layout of diffusers. `docs/weights.md` lists presets without
    /// any.
    pub fn diffusers_faults(&self) -> Vec<String> {
        let mut faults: Vec<String> = self.components().iter().flat_map(|part| part.diffusers_faults()).collect();
        if self.upsamplers.len() != 1 {
            faults.push(format!(
                "diffusers' unCLIP has one super-resolution stage, this pipeline has {}",
                self.upsamplers.len()
            ));
        }
        faults
    }

    /// Writes the pipeline to a directory in the layout of diffusers, for its `UnCLIPPipeline` or, without a prior,
    /// `UnCLIPImageVariationPipeline`. A pipeline that was loaded from such a directory retains its configuration files and its
    /// index.
    ///
    /// The index is written last, so an incomplete directory is not a pipeline.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with everything that the layout cannot express, see [`Pipeline::diffusers_faults`]; if a file
    /// cannot be written, or a value is not finite in `float_type`.
    pub fn save_diffusers(&self, dir: impl AsRef<Path>, float_type: FloatType) -> Result<()> {
        let (dir, faults) = (dir.as_ref(), self.diffusers_faults());
        if !faults.is_empty() {
            let faults = faults.join("\n  ");
            return Err(Error::Mismatch(format!("the layout of diffusers cannot express this pipeline:\n  {faults}")));
        }
        let mut entries = Vec::new();
        for part in self.components() {
            entries.extend(part.save_diffusers(dir, float_type)?);
        }
        write_json(dir.join(INDEX_FILE), &self.diffusers_index(entries))
    }

    fn components(&self) -> Vec<&dyn Component> {
        let mut parts: Vec<&dyn Component> = vec![&*self.text_encoder, &*self.decoder];
        if let Some(prior) = &self.prior {
            parts.push(&**prior);
        }
        if let Some(image_encoder) = &self.image_encoder {
            parts.push(&**image_encoder);
        }
        parts.extend(self.upsamplers.iter().map(|upsampler| -> &dyn Component { &**upsampler }));
        parts
    }

    /// The index of these entries. Loaded entries of the same class are retained, because releases of diffusers differ in the
    /// library of a class.
    fn diffusers_index(&self, entries: Vec<IndexEntry>) -> Map<String, Value> {
        let mut index = match &self.index {
            Some(index) => (**index).clone(),
            None => {
                let class = if self.prior.is_some() { TEXT_TO_IMAGE } else { VARIATION };
                let mut index = Map::new();
                index.insert("_class_name".into(), class.into());
                index.insert("_diffusers_version".into(), VERSION.into());
                index
            }
        };
        for IndexEntry { folder, library, class } in entries {
            let same_class =
                index.get(&folder).and_then(Value::as_array).is_some_and(|entry| entry.get(1) == Some(&json!(class)));
            if !same_class {
                index.insert(folder, json!([library, class]));
            }
        }
        index
    }
}
