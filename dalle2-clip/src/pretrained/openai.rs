//! The layout of OpenAI's CLIP and of open_clip: fused attention projections, matrices that multiply from the right.

use std::path::Path;

use dalle2_core::nn::Activation;
use dalle2_core::store::{Weights, read_json};
use dalle2_core::{ConfigError, Error, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::processor::Centre;
use crate::{ClipConfig, Filter, ImageProcessor, ImageSize, ReadAt, TextTransformerConfig, VisionTransformerConfig};

/// Integers that OpenAI's archives keep among the weights. Their presence says that a file is OpenAI's.
const OPENAI_SIZES: [&str; 3] = ["input_resolution", "context_length", "vocab_size"];
/// open_clip's configuration.
pub(super) const OPEN_CLIP_CONFIG: &str = "open_clip_config.json";

/// The names in front of, within and behind a transformer block, and transformers' names for them.
const NAMES: [(&str, &str); 10] = [
    ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("visual.conv1.", "vision_model.embeddings.patch_embedding."),
    ("visual.ln_pre.", "vision_model.pre_layrnorm."),
    ("visual.ln_post.", "vision_model.post_layernorm."),
    ("visual.proj", "visual_projection.weight"),
    ("token_embedding.", "text_model.embeddings.token_embedding."),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("ln_final.", "text_model.final_layer_norm."),
    ("text_projection", "text_projection.weight"),
];
const BLOCKS: [(&str, &str); 2] = [
    ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
    ("transformer.resblocks.", "text_model.encoder.layers."),
];
const BLOCK_NAMES: [(&str, &str); 5] = [
    ("ln_1.", "layer_norm1."),
    ("ln_2.", "layer_norm2."),
    ("attn.out_proj.", "self_attn.out_proj."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
];

/// Whether a table has this layout.
pub(super) fn is_openai(weights: &Weights) -> bool {
    weights.names().any(|name| name.ends_with("visual.class_embedding") || name.ends_with("visual.conv1.weight"))
}

/// Removes what training programs put in front of the names: `module.` of distributed training, `text.` of open_clip's
/// separate text tower.
pub(super) fn strip_prefixes(weights: &mut Weights) -> Result<()> {
    for prefix in ["_orig_mod.", "module."] {
        if weights.names().all(|name| name.starts_with(prefix)) {
            weights.rename(|name| name.strip_prefix(prefix).unwrap_or(name).to_owned())?;
        }
    }
    weights.rename(|name| name.strip_prefix("text.").unwrap_or(name).to_owned())
}

/// QuickGELU for OpenAI's own files, which are known by the integers in them.
pub(super) fn openai_activation(weights: &Weights) -> Option<Activation> {
    let openai = OPENAI_SIZES.iter().all(|name| weights.shape(name).is_some());
    openai.then_some(Activation::QuickGelu)
}

/// The architecture that the shapes of a table in OpenAI's layout tell.
///
/// The number of heads leaves no trace in the shapes: it is that of the preset with these sizes, else one head for
/// every 64 channels, as in all of OpenAI's models.
pub(super) fn infer(weights: &Weights, activation: Activation) -> Result<ClipConfig> {
    let unfit = |message: String| Error::format(weights.path(), message);
    if weights.names().any(|name| name.starts_with("visual.layer1.")) {
        return Err(unfit("has a ResNet as its vision tower: only vision transformers can be read".into()));
    }
    let mut missing = Vec::new();
    let mut shape = |name: &str, rank: usize| match weights.shape(name) {
        Some(shape) if shape.len() == rank => shape.to_vec(),
        found => {
            missing.push(format!("{name} (found {found:?}, expected {rank} axes)"));
            vec![0; rank]
        }
    };
    let patches = shape("visual.conv1.weight", 4);
    let positions = shape("visual.positional_embedding", 2);
    let visual_up = shape("visual.transformer.resblocks.0.mlp.c_fc.weight", 2);
    let visual_projection = shape("visual.proj", 2);
    let tokens = shape("token_embedding.weight", 2);
    let context = shape("positional_embedding", 2);
    let text_up = shape("transformer.resblocks.0.mlp.c_fc.weight", 2);
    let text_projection = shape("text_projection", 2);
    if !missing.is_empty() {
        return Err(unfit(format!("no CLIP in OpenAI's layout: {}", missing.join(", "))));
    }
    let side = positions[0].saturating_sub(1).isqrt();
    let heads = |width: usize| (width / 64).max(1);
    let size = [side * patches[2], patches[2]];
    let transformer = [patches[0], heads(patches[0]), blocks(weights, BLOCKS[0].0)];
    let vision = VisionTransformerConfig {
        d_ff: Some(visual_up[0]),
        ..VisionTransformerConfig::new(size, transformer, visual_projection[1])
    };
    let transformer = [tokens[1], heads(tokens[1]), blocks(weights, BLOCKS[1].0)];
    let text = TextTransformerConfig {
        vocab_size: tokens[0],
        d_ff: Some(text_up[0]),
        ..TextTransformerConfig::new(context[0], transformer, text_projection[1])
    };
    Ok(with_known_heads(ClipConfig { vision, text }, activation))
}

/// Number of transformer blocks under a prefix.
fn blocks(weights: &Weights, prefix: &str) -> usize {
    let number = |name: &str| name.strip_prefix(prefix)?.split_once('.')?.0.parse::<usize>().ok();
    // A file has at most one block for each of its tensors, whatever their names say.
    weights.names().filter_map(number).max().map_or(0, |last| (last.saturating_add(1)).min(weights.names().len()))
}

/// What all configurations of this layout share, and the number of heads of the preset with these sizes.
fn with_known_heads(mut config: ClipConfig, activation: Activation) -> ClipConfig {
    let sizes = |config: &ClipConfig| {
        let (vision, text) = (&config.vision, &config.text);
        [vision.d_model, vision.n_layers, vision.patch_size, vision.embed_dim, text.d_model, text.n_layers]
    };
    if let Some(preset) = ClipConfig::published().into_iter().find(|preset| sizes(preset) == sizes(&config)) {
        config.vision.n_heads = preset.vision.n_heads;
        config.text.n_heads = preset.text.n_heads;
    }
    finish(config, activation)
}

fn finish(mut config: ClipConfig, activation: Activation) -> ClipConfig {
    config.vision.activation = activation;
    config.text.activation = activation;
    config.text.read_at = Some(ReadAt::LargestId);
    config.text.pad_token =
        config.text.pad_token.min(u32::try_from(config.text.vocab_size).unwrap_or(u32::MAX).saturating_sub(1));
    config
}

/// Gives a table in OpenAI's layout transformers' names and layout. Nothing is read.
pub(super) fn convert(weights: &mut Weights) -> Result<()> {
    weights.ignore(|name| OPENAI_SIZES.contains(&name) || name.ends_with("attn_mask"));
    let fused: Vec<String> =
        weights.names().filter(|name| name.contains(".attn.in_proj_")).map(str::to_owned).collect();
    for name in fused {
        if let Some((block, parameter)) = name.split_once(".attn.in_proj_") {
            let pieces = ["q", "k", "v"].map(|piece| format!("{block}.self_attn.{piece}_proj.{parameter}"));
            weights.split(&name, &pieces)?;
        }
    }
    for name in ["visual.proj", "text_projection"] {
        if weights.shape(name).is_some() {
            weights.transpose(name)?;
        }
    }
    weights.rename(hugging_face_name)
}

fn hugging_face_name(name: &str) -> String {
    for (theirs, block) in BLOCKS {
        if let Some((layer, field)) = name.strip_prefix(theirs).and_then(|rest| rest.split_once('.')) {
            return format!("{block}{layer}.{}", renamed(&BLOCK_NAMES, field));
        }
    }
    renamed(&NAMES, name)
}

fn renamed(table: &[(&str, &str)], name: &str) -> String {
    let found = table.iter().find_map(|(theirs, ours)| {
        let rest = name.strip_prefix(theirs)?;
        // A name without a dot at its end is a whole one.
        (theirs.ends_with('.') || rest.is_empty()).then(|| format!("{ours}{rest}"))
    });
    found.unwrap_or_else(|| name.to_owned())
}

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
    /// A number for transformers, a list for ResNets.
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
            let expected = "needs a number of layers and a patch_size: only vision transformers can be read";
            return Err(ConfigError::new("vision_cfg.layers", &vision.layers, expected));
        };
        if let Some(name) = &text.hf_model_name {
            return Err(ConfigError::new("text_cfg.hf_model_name", name, "only CLIP's own text tower can be read"));
        }
        for (field, value) in [("vision_cfg.layers", layers), ("text_cfg.layers", text.layers)] {
            if value > 1000 {
                return Err(ConfigError::new(field, value, "must be at most 1000"));
            }
        }
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
            None | Some("bicubic") => Filter::Bicubic,
            Some("bilinear") => Filter::Bilinear,
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

/// The preparation of OpenAI's code and open_clip's, which is torchvision's.
pub(super) fn openai_processor(vision: &VisionTransformerConfig) -> ImageProcessor {
    ImageProcessor { centre: Centre::HalfEven, ..ImageProcessor::new(vision) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_those_of_transformers() {
        for (theirs, ours) in [
            ("visual.proj", "visual_projection.weight"),
            ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
            ("visual.ln_pre.bias", "vision_model.pre_layrnorm.bias"),
            ("visual.transformer.resblocks.11.mlp.c_fc.weight", "vision_model.encoder.layers.11.mlp.fc1.weight"),
            ("transformer.resblocks.3.attn.out_proj.bias", "text_model.encoder.layers.3.self_attn.out_proj.bias"),
            ("transformer.resblocks.0.self_attn.q_proj.weight", "text_model.encoder.layers.0.self_attn.q_proj.weight"),
            ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
            ("text_projection", "text_projection.weight"),
            ("logit_scale", "logit_scale"),
            ("visual.projection", "visual.projection"),
        ] {
            assert_eq!(hugging_face_name(theirs), ours);
        }
    }

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
    fn towers_that_are_no_transformers_are_refused() {
        let text =
            serde_json::json!({"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12});
        let resnet = serde_json::json!({"image_size": 224, "layers": [3, 4, 6, 3], "width": 64, "patch_size": null});
        let error = open_clip(serde_json::json!({"embed_dim": 1024, "vision_cfg": resnet, "text_cfg": text}));
        assert!(error.unwrap_err().to_string().contains("only vision transformers"));
    }
}
