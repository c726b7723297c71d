//! A published CLIP with both towers.

use std::collections::BTreeMap;
use std::path::Path;

use burn::prelude::Device;
use dalle2_core::nn::Activation;
use dalle2_core::store::{self, CONFIG_FILE, WEIGHTS_FILE, Weights, read_json, write_json};
use dalle2_core::text::ClipTokenizer;
use dalle2_core::{ConfigError, Error, FloatType, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::encoders::{self, set_dtype};
use super::open_clip::{OPEN_CLIP_CONFIG, read_open_clip};
use super::openai;
use super::transformers::{TextJson, VisionJson, text_json, vision_json};
use crate::import::clip_tensor_name;
use crate::{Clip, ClipConfig, ClipImageEncoder, ClipTextEncoder, ImageProcessor};

/// Class name of a CLIP with both towers in transformers.
const PRETRAINED_CLASS: &str = "CLIPModel";

/// Properties of a CLIP that a file of weights does not record.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// The architecture; `None` takes it from the checkpoint's configuration or from the shapes of its tensors.
    pub architecture: Option<ClipConfig>,
    /// The nonlinearity; `None` takes it from the checkpoint's configuration, and QuickGELU for OpenAI's own files.
    pub activation: Option<Activation>,
}

/// A pretrained CLIP: both towers, the image processor and the tokenizer.
#[derive(Debug)]
pub struct PretrainedClip {
    /// The architecture.
    pub config: ClipConfig,
    /// The towers.
    pub model: Clip,
    /// The image processor; `None` for this library's layout, which uses [`preprocess`](crate::preprocess).
    pub processor: Option<ImageProcessor>,
    /// The tokenizer.
    pub tokenizer: ClipTokenizer,
    /// Transformers' configuration, if the checkpoint has one.
    source: Option<Map<String, Value>>,
}

/// Transformers' configuration of a `CLIPModel`.
#[derive(Deserialize)]
struct ModelJson {
    #[serde(default)]
    text_config: TextJson,
    #[serde(default)]
    vision_config: VisionJson,
    #[serde(default = "default_projection")]
    projection_dim: usize,
}

impl ModelJson {
    fn config(&self) -> Result<ClipConfig, ConfigError> {
        let embed_dim = Some(self.projection_dim);
        Ok(ClipConfig {
            vision: self.vision_config.config(embed_dim).map_err(|e| e.within("vision_config"))?,
            text: self.text_config.config(embed_dim).map_err(|e| e.within("text_config"))?,
        })
    }
}

fn default_projection() -> usize {
    512
}

impl PretrainedClip {
    /// Reads a CLIP from a directory or a file.
    ///
    /// | layout | recognised by |
    /// |---|---|
    /// | a directory of [`Clip::save`] | `config.json` with `_class_name` |
    /// | a directory of transformers' `CLIPModel` | `config.json` with `model_type` "clip" |
    /// | a directory of open_clip | `open_clip_config.json` |
    /// | a state dict of OpenAI's or open_clip's, or OpenAI's TorchScript archive | the file's extension and tensor names |
    ///
    /// # Errors
    /// If the layout is none of these, a file is missing or damaged, or tensors do not match; if neither a file of weights
    /// nor the options determine the nonlinearity.
    pub fn load(path: impl AsRef<Path>, options: &ImportOptions, device: &Device) -> Result<Self> {
        let path = path.as_ref();
        if path.is_file() {
            return Self::load_file(path, options, device);
        }
        if path.join(CONFIG_FILE).is_file() {
            let json: Map<String, Value> = read_json(path.join(CONFIG_FILE))?;
            if json.contains_key("_class_name") {
                return Self::load_native(path, device);
            }
            return Self::load_transformers(path, json, options, device);
        }
        if path.join(OPEN_CLIP_CONFIG).is_file() {
            let (config, processor) = read_open_clip(path)?;
            let mut weights = Weights::find(path, &["open_clip_model", "open_clip_pytorch_model"])?;
            openai::strip_prefixes(&mut weights)?;
            let config = options.architecture.clone().unwrap_or(config);
            let checkpoint = Checkpoint { config, processor, weights, tokenizer: find_tokenizer(path)? };
            return checkpoint.load(options, device);
        }
        let message =
            format!("holds no CLIP: expected {CONFIG_FILE}, {OPEN_CLIP_CONFIG} or the path of a file of weights");
        Err(Error::format(path, message))
    }

    /// Reads a directory of [`Clip::save`].
    fn load_native(dir: &Path, device: &Device) -> Result<Self> {
        let config: ClipConfig = store::read_config(dir, Clip::CLASS)?;
        config.validate().map_err(|e| Error::format(dir.join(CONFIG_FILE), e.to_string()))?;
        let model = store::load_module_as(config.init(device), dir.join(WEIGHTS_FILE), &clip_tensor_name)?;
        Ok(Self { config, model, processor: None, tokenizer: ClipTokenizer::openai()?, source: None })
    }

    fn load_transformers(
        dir: &Path,
        source: Map<String, Value>,
        options: &ImportOptions,
        device: &Device,
    ) -> Result<Self> {
        let path = dir.join(CONFIG_FILE);
        let named = |message: String| Error::format(&path, message);
        if source.get("model_type").is_none_or(|model_type| model_type != "clip") {
            let model_type = source.get("model_type").unwrap_or(&Value::Null);
            return Err(named(format!("`model_type` is {model_type}, expected \"clip\", a CLIP with both towers")));
        }
        let mut config = match &options.architecture {
            Some(architecture) => architecture.clone(),
            None => read_json::<ModelJson>(&path)?.config().map_err(|e| named(e.to_string()))?,
        };
        if let Some(activation) = options.activation {
            config = config.with_activation(activation);
        }
        let tokenizer = find_tokenizer(dir)?;
        if !tokenizer.is_openai() {
            config.text.pad_token = tokenizer.pad_token();
        }
        config.validate().map_err(|e| named(e.to_string()))?;
        let processor =
            if ImageProcessor::is_in(dir) { ImageProcessor::load(dir)? } else { ImageProcessor::new(&config.vision) };
        let model = store::load_module_from(config.init(device), &encoders::open_weights(dir)?, &clip_tensor_name)?;
        Ok(Self { config, model, processor: Some(processor), tokenizer, source: Some(source) })
    }

    fn load_file(path: &Path, options: &ImportOptions, device: &Device) -> Result<Self> {
        let mut weights = Weights::open(path)?;
        openai::strip_prefixes(&mut weights)?;
        if !openai::is_openai(&weights) {
            let message = "is not a CLIP in OpenAI's layout (visual.conv1.weight, …); \
                           for a checkpoint of transformers, give the directory with its config.json";
            return Err(Error::format(path, message));
        }
        let config = match &options.architecture {
            Some(config) => config.clone(),
            None => {
                let known = options.activation.or_else(|| openai::openai_activation(&weights));
                let message = "does not determine the nonlinearity: choose QuickGELU (OpenAI's weights and models \
                               derived from them) or exact GELU (most of open_clip's)";
                let activation = known.ok_or_else(|| Error::format(path, message))?;
                openai::infer(&weights, activation)?
            }
        };
        let processor = openai::openai_processor(&config.vision);
        Checkpoint { config, processor, weights, tokenizer: ClipTokenizer::openai()? }.load(options, device)
    }

    /// Writes a directory that transformers opens as a `CLIPModel`: configuration, weights and image processor. A CLIP
    /// that was read from such a directory is written unchanged.
    ///
    /// # Errors
    /// If the vocabulary is restricted, which transformers does not support; if a file cannot be written or a weight is
    /// not finite in `float_type`.
    pub fn save(&self, dir: impl AsRef<Path>, float_type: FloatType) -> Result<()> {
        let dir = dir.as_ref();
        if self.config.text.vocabulary.is_some() {
            return Err(Error::format(dir, "a restricted vocabulary cannot be expressed by transformers' CLIPModel"));
        }
        let mut json = self.source.clone().unwrap_or_else(|| self.json());
        set_dtype(&mut json, float_type);
        store::save_module_as(&self.model, dir.join(WEIGHTS_FILE), float_type, &BTreeMap::new(), &clip_tensor_name)?;
        self.processor.clone().unwrap_or_else(|| ImageProcessor::new(&self.config.vision)).save(dir)?;
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

    /// Splits the CLIP into the two encoders of a pipeline.
    ///
    /// # Errors
    /// If the tokenizer or the image processor does not match its tower.
    pub fn into_encoders(self) -> Result<(ClipTextEncoder, ClipImageEncoder)> {
        let mut text = ClipTextEncoder::new(self.config.text, &self.model.text)?;
        if !self.tokenizer.is_openai() {
            text = text.with_tokenizer(self.tokenizer)?;
        }
        let mut image = ClipImageEncoder::new(self.config.vision, &self.model.vision)?;
        if let Some(processor) = self.processor {
            image = image.with_processor(processor)?;
        }
        Ok((text, image))
    }
}

/// A checkpoint in OpenAI's layout with its architecture.
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

/// Reads the tokenizer in a directory; without its files, OpenAI's.
fn find_tokenizer(dir: &Path) -> Result<ClipTokenizer> {
    ClipTokenizer::find(dir)?.map_or_else(ClipTokenizer::openai, Ok)
}
