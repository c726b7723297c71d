//! Reads open_clip's `open_clip_config.json`; its weights have OpenAI's layout.

use std::path::Path;

use dalle2_core::nn::Activation;
use dalle2_core::store::read_json;
use dalle2_core::{ConfigError, Error, Result};
use serde::Deserialize;
use serde_json::Value;

use super::openai::{finish, openai_processor};
use crate::limits::{MAX_LAYERS, at_most};
use crate::{ClipConfig, ImageProcessor, ImageSize, Resampling, TextTransformerConfig, VisionTransformerConfig};

/// Name of the file.
pub(super) const OPEN_CLIP_CONFIG: &str = "open_clip_config.json";

#[derive(Deserialize)]
struct OpenClipJson {
    model_cfg: ModelJson,
    #[serde(default)]
    preprocess_cfg: PreprocessJson,
}

#[derive(Deserialize)]
struct ModelJson {
    embed_dim: usize,
    #[serde(default)]
    quick_gelu: bool,
    vision_cfg: VisionJson,
    text_cfg: TextJson,
}

#[derive(Deserialize)]
struct VisionJson {
    image_size: usize,
    /// A number for vision transformers, a list for ResNets.
    layers: Value,
    width: usize,
    patch_size: Option<usize>,
    head_width: Option<usize>,
    mlp_ratio: Option<f64>,
    timm_model_name: Option<String>,
}

#[derive(Deserialize)]
struct TextJson {
    context_length: usize,
    vocab_size: usize,
    width: usize,
    heads: usize,
    layers: usize,
    mlp_ratio: Option<f64>,
    hf_model_name: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PreprocessJson {
    mean: Option<[f64; 3]>,
    std: Option<[f64; 3]>,
    interpolation: Option<String>,
    resize_mode: Option<String>,
}

/// Reads `open_clip_config.json`.
pub(super) fn read_open_clip(dir: &Path) -> Result<(ClipConfig, ImageProcessor)> {
    let path = dir.join(OPEN_CLIP_CONFIG);
    let json: OpenClipJson = read_json(&path)?;
    let unfit = |e: ConfigError| Error::format(&path, e.to_string());
    let config = json.model_cfg.config().map_err(unfit)?;
    let processor = json.preprocess_cfg.processor(&config.vision).map_err(unfit)?;
    Ok((config, processor))
}

impl ModelJson {
    fn config(&self) -> Result<ClipConfig, ConfigError> {
        let (vision, text) = (&self.vision_cfg, &self.text_cfg);
        let layers = vision.layers.as_u64().and_then(|layers| usize::try_from(layers).ok());
        let (Some(layers), Some(patch), None) = (layers, vision.patch_size, &vision.timm_model_name) else {
            let expected = "must be a number, with a patch_size: only vision transformers are supported";
            return Err(ConfigError::new("vision_cfg.layers", &vision.layers, expected));
        };
        if let Some(name) = &text.hf_model_name {
            return Err(ConfigError::new(
                "text_cfg.hf_model_name",
                name,
                "must be absent: only CLIP's text tower is supported",
            ));
        }
        at_most("vision_cfg.layers", layers, MAX_LAYERS)?;
        at_most("text_cfg.layers", text.layers, MAX_LAYERS)?;
        let width = |width: usize, ratio: Option<f64>| (width as f64 * ratio.unwrap_or(4.0)) as usize;
        let heads = vision.width / vision.head_width.unwrap_or(64).max(1);
        let config = ClipConfig {
            vision: VisionTransformerConfig {
                d_ff: Some(width(vision.width, vision.mlp_ratio)),
                ..VisionTransformerConfig::new(
                    [vision.image_size, patch],
                    [vision.width, heads, layers],
                    self.embed_dim,
                )
            },
            text: TextTransformerConfig {
                vocab_size: text.vocab_size,
                d_ff: Some(width(text.width, text.mlp_ratio)),
                ..TextTransformerConfig::new(text.context_length, [text.width, text.heads, text.layers], self.embed_dim)
            },
        };
        let activation = if self.quick_gelu { Activation::QuickGelu } else { Activation::Gelu };
        let config = finish(config, activation);
        config.validate().map(|()| config)
    }
}

impl PreprocessJson {
    fn processor(&self, vision: &VisionTransformerConfig) -> Result<ImageProcessor, ConfigError> {
        let mut processor = openai_processor(vision);
        processor.resample = match self.interpolation.as_deref() {
            None | Some("bicubic") => Resampling::Bicubic,
            Some("bilinear") => Resampling::Bilinear,
            Some(other) => {
                return Err(ConfigError::new("interpolation", other, "must be \"bicubic\" or \"bilinear\""));
            }
        };
        processor.size = match self.resize_mode.as_deref() {
            None | Some("shortest") => processor.size,
            Some("squash") => ImageSize::Exact { height: vision.image_size, width: vision.image_size },
            Some(other) => return Err(ConfigError::new("resize_mode", other, "must be \"shortest\" or \"squash\"")),
        };
        processor.image_mean = self.mean.unwrap_or(processor.image_mean);
        processor.image_std = self.std.unwrap_or(processor.image_std);
        processor.validate().map(|()| processor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ReadAt;

    fn open_clip(model: Value) -> Result<ClipConfig, ConfigError> {
        serde_json::from_value::<ModelJson>(model).unwrap().config()
    }

    #[test]
    fn open_clip_configurations_are_the_presets() {
        let big = open_clip(serde_json::json!({
            "embed_dim": 1280,
            "vision_cfg": {"image_size": 224, "layers": 48, "width": 1664, "head_width": 104, "mlp_ratio": 4.9231, "patch_size": 14},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 1280, "heads": 20, "layers": 32}
        }))
        .unwrap();
        let preset = ClipConfig::vit_big_g_14();
        assert_eq!(big.num_params(), preset.num_params());
        assert_eq!((big.vision.n_heads, big.text.n_heads), (preset.vision.n_heads, preset.text.n_heads));
        assert_eq!((big.vision.activation, big.text.read_at), (Activation::Gelu, Some(ReadAt::LargestId)));
    }

    #[test]
    fn resnets_are_refused() {
        let text =
            serde_json::json!({"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12});
        let resnet = serde_json::json!({"image_size": 224, "layers": [3, 4, 6, 3], "width": 64, "patch_size": null});
        let error = open_clip(serde_json::json!({"embed_dim": 1024, "vision_cfg": resnet, "text_cfg": text}));
        assert!(error.unwrap_err().to_string().contains("only vision transformers"));
    }
}
