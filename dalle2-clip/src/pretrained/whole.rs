//! Both towers of a published CLIP.

use std::collections::BTreeMap;
use std::path::Path;

use burn::prelude::Device;
use dalle2_core::nn::Activation;
use dalle2_core::store::{self, CONFIG_FILE, WEIGHTS_FILE, Weights, read_json, write_json};
use dalle2_core::text::ClipTokenizer;
use dalle2_core::{Error, FloatType, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::config::{TextJson, VisionJson, text_json, vision_json};
use super::openai::{self, OPEN_CLIP_CONFIG};
use super::tower::{self, set_dtype};
use crate::import::clip_tensor_name;
use crate::model::CLASS;
use crate::{Clip, ClipConfig, ClipImageEncoder, ClipTextEncoder, ImageProcessor};

/// Class name of a whole CLIP in transformers.
const PRETRAINED_CLASS: &str = "CLIPModel";

/// What a checkpoint of weights alone does not say about itself.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// The architecture; `None` takes it from the checkpoint's configuration or from the shapes of its tensors.
    pub architecture: Option<ClipConfig>,
    /// The nonlinearity; `None` takes it from the checkpoint's configuration, and QuickGELU for OpenAI's own files.
    pub activation: Option<Activation>,
}

/// A CLIP that someone has trained: both towers, and how its images and captions are prepared.
#[derive(Debug)]
pub struct PretrainedClip {
    /// The architecture.
    pub config: ClipConfig,
    /// The towers.
    pub model: Clip,
    /// How images are prepared; `None` for models of this library's own form, see [`preprocess`](crate::preprocess).
    pub processor: Option<ImageProcessor>,
    /// The tokenizer.
    pub tokenizer: ClipTokenizer,
    /// Transformers' configuration, where the checkpoint has one.
    source: Option<Map<String, Value>>,
}

/// The outer part of transformers' configuration of a whole CLIP.
#[derive(Deserialize)]
struct WholeJson {
    #[serde(default)]
    text_config: TextJson,
    #[serde(default)]
    vision_config: VisionJson,
    #[serde(default = "default_projection")]
    projection_dim: usize,
}

fn default_projection() -> usize {
    512
}

impl PretrainedClip {
    /// Reads a CLIP from a directory or a file.
    ///
    /// | what | known by |
    /// |---|---|
    /// | a directory of [`ClipConfig::save`] | `config.json` with `_class_name` |
    /// | a directory of transformers' `CLIPModel` | `config.json` with `model_type` "clip" |
    /// | a directory of open_clip | `open_clip_config.json` |
    /// | a state dict of OpenAI's or open_clip's, or OpenAI's TorchScript archive | the file's ending and tensor names |
    ///
    /// # Errors
    /// When it is none of these, a file is missing or damaged, or tensors do not fit; when a file of weights alone does
    /// not tell its nonlinearity and the options do not either.
    pub fn load(path: impl AsRef<Path>, options: &ImportOptions, device: &Device) -> Result<Self> {
        let path = path.as_ref();
        if path.is_file() {
            return Self::load_file(path, options, device);
        }
        if path.join(CONFIG_FILE).is_file() {
            let json: Map<String, Value> = read_json(path.join(CONFIG_FILE))?;
            if json.get("_class_name").is_some_and(|class| class == CLASS) {
                let (config, model) = ClipConfig::load(path, device)?;
                let tokenizer = ClipTokenizer::openai()?;
                return Ok(Self { config, model, processor: None, tokenizer, source: None });
            }
            return Self::load_transformers(path, json, options, device);
        }
        if path.join(OPEN_CLIP_CONFIG).is_file() {
            let (config, processor) = openai::read_open_clip(path)?;
            let mut weights = Weights::find(path, &["open_clip_model", "open_clip_pytorch_model"])?;
            openai::strip_prefixes(&mut weights)?;
            let config = options.architecture.clone().unwrap_or(config);
            let checkpoint = Checkpoint { config, processor, weights, tokenizer: tokenizer(path)? };
            return checkpoint.load(options, device);
        }
        let message = format!("no CLIP here: expected {CONFIG_FILE}, {OPEN_CLIP_CONFIG} or the path of a weights file");
        Err(Error::format(path, message))
    }

    fn load_transformers(
        dir: &Path,
        source: Map<String, Value>,
        options: &ImportOptions,
        device: &Device,
    ) -> Result<Self> {
        let path = dir.join(CONFIG_FILE);
        let unfit = |message: String| Error::format(&path, message);
        if source.get("model_type").is_none_or(|found| found != "clip") {
            let found = source.get("model_type").unwrap_or(&Value::Null);
            return Err(unfit(format!("`model_type` is {found}, expected \"clip\", a CLIP with both towers")));
        }
        let json: WholeJson = read_json(&path)?;
        let within = |tower: &'static str| move |e: dalle2_core::ConfigError| e.within(tower).to_string();
        let mut config = ClipConfig {
            vision: json
                .vision_config
                .config(Some(json.projection_dim))
                .map_err(within("vision_config"))
                .map_err(unfit)?,
            text: json.text_config.config(Some(json.projection_dim)).map_err(within("text_config")).map_err(unfit)?,
        };
        if let Some(architecture) = &options.architecture {
            config = architecture.clone();
        }
        if let Some(activation) = options.activation {
            config = config.with_activation(activation);
        }
        let processor = match dir.join("preprocessor_config.json").is_file() {
            true => ImageProcessor::load(dir)?,
            false => ImageProcessor::new(&config.vision),
        };
        let model = store::load_module_from(config.init(device), &tower::open(dir)?, &clip_tensor_name)?;
        Ok(Self { config, model, processor: Some(processor), tokenizer: tokenizer(dir)?, source: Some(source) })
    }

    fn load_file(path: &Path, options: &ImportOptions, device: &Device) -> Result<Self> {
        let mut weights = Weights::open(path)?;
        openai::strip_prefixes(&mut weights)?;
        if !openai::is_openai(&weights) {
            let message = "holds no CLIP in OpenAI's layout (visual.conv1.weight, …); \
                           a checkpoint of transformers is read as a directory with its config.json";
            return Err(Error::format(path, message));
        }
        let config = match &options.architecture {
            Some(config) => config.clone(),
            None => {
                let known = options.activation.or_else(|| openai::openai_activation(&weights));
                let message = "does not tell whether it was trained with QuickGELU (OpenAI's weights and their \
                               relatives) or with exact GELU (most of open_clip's): say which";
                let activation = known.ok_or_else(|| Error::format(path, message))?;
                openai::infer(&weights, activation)?
            }
        };
        let processor = openai::openai_processor(&config.vision);
        Checkpoint { config, processor, weights, tokenizer: ClipTokenizer::openai()? }.load(options, device)
    }

    /// Writes a directory that transformers opens as a `CLIPModel`: configuration, weights and preprocessing. What was
    /// read from such a directory is written as it was.
    ///
    /// # Errors
    /// When the vocabulary is restricted, which transformers does not know; when a file cannot be written or a weight
    /// is not finite in `float_type`.
    pub fn save(&self, dir: impl AsRef<Path>, float_type: FloatType) -> Result<()> {
        let dir = dir.as_ref();
        if self.config.text.vocabulary.is_some() {
            return Err(Error::format(dir, "a restricted vocabulary cannot be expressed by transformers' CLIPModel"));
        }
        let mut json = match &self.source {
            Some(source) => source.clone(),
            None => self.json(),
        };
        set_dtype(&mut json, float_type);
        store::save_module_as(&self.model, dir.join(WEIGHTS_FILE), float_type, &BTreeMap::new(), &clip_tensor_name)?;
        match &self.processor {
            Some(processor) => processor.save(dir)?,
            None => ImageProcessor::new(&self.config.vision).save(dir)?,
        }
        write_json(dir.join(CONFIG_FILE), &json)
    }

    fn json(&self) -> Map<String, Value> {
        let json = json!({
            "architectures": [PRETRAINED_CLASS],
            "initializer_factor": 1.0,
            "logit_scale_init_value": 2.6592,
            "model_type": "clip",
            "projection_dim": self.config.embed_dim(),
            "text_config": text_json(&self.config.text),
            "vision_config": vision_json(&self.config.vision),
        });
        if let Value::Object(map) = json { map } else { Map::new() }
    }

    /// The towers as the stages of a pipeline use them.
    ///
    /// # Errors
    /// When the image preprocessing does not give the size that the vision tower reads.
    pub fn into_encoders(self) -> Result<(ClipTextEncoder, ClipImageEncoder)> {
        let text = ClipTextEncoder::from_clip(&self.config, &self.model)?.with_tokenizer(self.tokenizer);
        let image = ClipImageEncoder::from_clip(&self.config, &self.model)?;
        let image = match self.processor {
            Some(processor) => image.with_processor(processor)?,
            None => image,
        };
        Ok((text, image))
    }
}

/// A checkpoint in OpenAI's layout whose architecture is known.
struct Checkpoint {
    config: ClipConfig,
    processor: ImageProcessor,
    weights: Weights,
    tokenizer: ClipTokenizer,
}

impl Checkpoint {
    fn load(self, options: &ImportOptions, device: &Device) -> Result<PretrainedClip> {
        let Self { mut config, processor, mut weights, tokenizer } = self;
        if let Some(activation) = options.activation {
            config = config.with_activation(activation);
        }
        config.validate().map_err(|e| Error::format(weights.path(), e.to_string()))?;
        openai::convert(&mut weights)?;
        let model = store::load_module_from(config.init(device), &weights, &clip_tensor_name)?;
        Ok(PretrainedClip { config, model, processor: Some(processor), tokenizer, source: None })
    }
}

/// The tokenizer that lies in a directory, or OpenAI's.
fn tokenizer(dir: &Path) -> Result<ClipTokenizer> {
    match ["tokenizer.json", "vocab.json"].iter().any(|name| dir.join(name).is_file()) {
        true => ClipTokenizer::from_dir(dir),
        false => ClipTokenizer::openai(),
    }
}
