//! Transformers' configurations of CLIP, and their conversion.

use dalle2_core::ConfigError;
use dalle2_core::FloatType;
use dalle2_core::nn::Activation;
use dalle2_core::text::{END, START};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::limits::{MAX_CONTEXT, MAX_LAYERS, MAX_SIDE, MAX_VOCABULARY, MAX_WIDTH, at_most};
use crate::{ReadAt, TextTransformerConfig, VisionTransformerConfig};

/// `text_config`; defaults are those of transformers.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub(super) struct TextJson {
    hidden_act: String,
    hidden_size: usize,
    intermediate_size: usize,
    layer_norm_eps: f64,
    max_position_embeddings: usize,
    num_attention_heads: usize,
    num_hidden_layers: usize,
    projection_dim: usize,
    vocab_size: usize,
    eos_token_id: u32,
}

impl Default for TextJson {
    fn default() -> Self {
        Self {
            hidden_act: "quick_gelu".into(),
            hidden_size: 512,
            intermediate_size: 2048,
            layer_norm_eps: 1e-5,
            max_position_embeddings: 77,
            num_attention_heads: 8,
            num_hidden_layers: 12,
            projection_dim: 512,
            vocab_size: 49_408,
            eos_token_id: END,
        }
    }
}

/// `vision_config`; defaults are those of transformers.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub(super) struct VisionJson {
    hidden_act: String,
    hidden_size: usize,
    image_size: usize,
    intermediate_size: usize,
    layer_norm_eps: f64,
    num_attention_heads: usize,
    num_channels: usize,
    num_hidden_layers: usize,
    patch_size: usize,
    projection_dim: usize,
}

impl Default for VisionJson {
    fn default() -> Self {
        Self {
            hidden_act: "quick_gelu".into(),
            hidden_size: 768,
            image_size: 224,
            intermediate_size: 3072,
            layer_norm_eps: 1e-5,
            num_attention_heads: 12,
            num_channels: 3,
            num_hidden_layers: 12,
            patch_size: 32,
            projection_dim: 512,
        }
    }
}

impl TextJson {
    /// Converts the configuration; `projection_dim` of a `CLIPModel` overrides that of its text tower.
    pub(super) fn config(&self, projection_dim: Option<usize>) -> Result<TextTransformerConfig, ConfigError> {
        let config = TextTransformerConfig {
            vocab_size: self.vocab_size,
            vocabulary: None,
            context_length: self.max_position_embeddings,
            // Nothing reads `pad_token_id` of these files: the padding token is the tokenizer's.
            pad_token: END.min(u32::try_from(self.vocab_size).unwrap_or(END).saturating_sub(1)),
            d_model: self.hidden_size,
            n_heads: self.num_attention_heads,
            n_layers: self.num_hidden_layers,
            d_ff: Some(self.intermediate_size),
            activation: activation(&self.hidden_act)?,
            dropout: 0.0,
            layer_norm_eps: Some(self.layer_norm_eps),
            embed_dim: projection_dim.unwrap_or(self.projection_dim),
            read_at: Some(if self.eos_token_id == 2 { ReadAt::LargestId } else { ReadAt::Token(self.eos_token_id) }),
        };
        at_most("num_hidden_layers", config.n_layers, MAX_LAYERS)?;
        at_most("hidden_size", config.d_model, MAX_WIDTH)?;
        at_most("intermediate_size", self.intermediate_size, MAX_WIDTH)?;
        at_most("vocab_size", config.vocab_size, MAX_VOCABULARY)?;
        at_most("max_position_embeddings", config.context_length, MAX_CONTEXT)?;
        at_most("projection_dim", config.embed_dim, MAX_WIDTH)?;
        config.validate().map(|()| config)
    }
}

impl VisionJson {
    /// Converts the configuration; `projection_dim` as in [`TextJson::config`].
    pub(super) fn config(&self, projection_dim: Option<usize>) -> Result<VisionTransformerConfig, ConfigError> {
        if self.num_channels != 3 {
            return Err(ConfigError::new("num_channels", self.num_channels, "must be 3: images are RGB"));
        }
        let size = [self.image_size, self.patch_size];
        let transformer = [self.hidden_size, self.num_attention_heads, self.num_hidden_layers];
        let config = VisionTransformerConfig {
            d_ff: Some(self.intermediate_size),
            activation: activation(&self.hidden_act)?,
            layer_norm_eps: Some(self.layer_norm_eps),
            ..VisionTransformerConfig::new(size, transformer, projection_dim.unwrap_or(self.projection_dim))
        };
        at_most("num_hidden_layers", config.n_layers, MAX_LAYERS)?;
        at_most("hidden_size", config.d_model, MAX_WIDTH)?;
        at_most("intermediate_size", self.intermediate_size, MAX_WIDTH)?;
        at_most("image_size", config.image_size, MAX_SIDE)?;
        at_most("projection_dim", config.embed_dim, MAX_WIDTH)?;
        config.validate().map(|()| config)
    }
}

fn activation(name: &str) -> Result<Activation, ConfigError> {
    match name {
        "quick_gelu" => Ok(Activation::QuickGelu),
        "gelu" => Ok(Activation::Gelu),
        _ => Err(ConfigError::new("hidden_act", format!("{name:?}"), "must be \"quick_gelu\" or \"gelu\"")),
    }
}

fn activation_name(activation: Activation) -> &'static str {
    match activation {
        Activation::QuickGelu => "quick_gelu",
        Activation::Gelu => "gelu",
    }
}

/// Returns a text tower's configuration in transformers' form, without the name of the class.
pub(super) fn text_json(config: &TextTransformerConfig) -> Map<String, Value> {
    let end = match config.read_at {
        Some(ReadAt::LargestId) => 2,
        Some(ReadAt::Token(id)) => id,
        Some(ReadAt::EndOfText) | None => END,
    };
    object(json!({
        "attention_dropout": 0.0,
        "bos_token_id": START,
        "eos_token_id": end,
        "hidden_act": activation_name(config.activation),
        "hidden_size": config.d_model,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": config.d_ff.unwrap_or(4 * config.d_model),
        "layer_norm_eps": config.layer_norm_eps.unwrap_or(1e-5),
        "max_position_embeddings": config.context_length,
        "model_type": "clip_text_model",
        "num_attention_heads": config.n_heads,
        "num_hidden_layers": config.n_layers,
        "pad_token_id": config.pad_token,
        "projection_dim": config.embed_dim,
        "vocab_size": config.vocab_size,
    }))
}

/// Returns a vision tower's configuration in transformers' form, without the name of the class.
pub(super) fn vision_json(config: &VisionTransformerConfig) -> Map<String, Value> {
    object(json!({
        "attention_dropout": 0.0,
        "hidden_act": activation_name(config.activation),
        "hidden_size": config.d_model,
        "image_size": config.image_size,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": config.d_ff.unwrap_or(4 * config.d_model),
        "layer_norm_eps": config.layer_norm_eps.unwrap_or(1e-5),
        "model_type": "clip_vision_model",
        "num_attention_heads": config.n_heads,
        "num_channels": 3,
        "num_hidden_layers": config.n_layers,
        "patch_size": config.patch_size,
        "projection_dim": config.embed_dim,
    }))
}

/// Returns PyTorch's name of an element type.
pub(super) fn dtype_name(float_type: FloatType) -> &'static str {
    match float_type {
        FloatType::F32 => "float32",
        FloatType::F16 => "float16",
        FloatType::Bf16 => "bfloat16",
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
