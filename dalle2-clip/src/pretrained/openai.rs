//! The layout of OpenAI's CLIP and of open_clip: fused attention projections, matrices that multiply from the right.

use dalle2_core::nn::Activation;
use dalle2_core::store::Weights;
use dalle2_core::{Error, Result};

use crate::processor::CropRounding;
use crate::{ClipConfig, ImageProcessor, ReadAt, TextTransformerConfig, VisionTransformerConfig};

/// Integers that OpenAI's archives store among the weights, and other files do not.
const OPENAI_SIZES: [&str; 3] = ["input_resolution", "context_length", "vocab_size"];

/// OpenAI's names outside the transformer blocks, and transformers' names. A name without a final dot is complete.
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

/// Returns whether the weights have this layout.
pub(super) fn is_openai(weights: &Weights) -> bool {
    weights.names().any(|name| name.ends_with("visual.class_embedding") || name.ends_with("visual.conv1.weight"))
}

/// Removes the prefixes of training programs, in any order and number: `module.` of distributed training, `_orig_mod.` of
/// `torch.compile` on the model or its parts, `model.` of Lightning; then `text.`, open_clip's separate text tower.
pub(super) fn strip_prefixes(weights: &mut Weights) -> Result<()> {
    weights.rename(|name| name.replace("_orig_mod.", ""))?;
    while let Some(prefix) = ["module.", "model."].into_iter().find(|p| weights.names().all(|name| name.starts_with(p)))
    {
        if weights.names().len() == 0 {
            break;
        }
        weights.rename(|name| name.strip_prefix(prefix).unwrap_or(name).to_owned())?;
    }
    weights.rename(|name| name.strip_prefix("text.").unwrap_or(name).to_owned())
}

/// Returns QuickGELU for OpenAI's files, which the integers among the weights identify.
pub(super) fn openai_activation(weights: &Weights) -> Option<Activation> {
    let openai = OPENAI_SIZES.iter().all(|name| weights.shape(name).is_some());
    openai.then_some(Activation::QuickGelu)
}

/// Infers the architecture from the shapes of weights in OpenAI's layout.
///
/// The shapes do not determine the number of heads: it is taken from the preset with these sizes, otherwise it is one
/// head per 64 channels, as in all of OpenAI's models.
pub(super) fn infer(weights: &Weights, activation: Activation) -> Result<ClipConfig> {
    let unfit = |message: String| Error::format(weights.path(), message);
    if weights.names().any(|name| name.starts_with("visual.layer1.")) {
        return Err(unfit("has a ResNet as its vision tower: only vision transformers are supported".into()));
    }
    let mut missing = Vec::new();
    let mut shape = |name: &str, rank: usize| match weights.shape(name) {
        Some(shape) if shape.len() == rank => shape.to_vec(),
        actual => {
            missing.push(format!("{name} (shape {actual:?}, expected {rank} axes)"));
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
        return Err(unfit(format!("is not a CLIP in OpenAI's layout: {}", missing.join(", "))));
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

/// Counts the transformer blocks under a prefix.
fn blocks(weights: &Weights, prefix: &str) -> usize {
    let number = |name: &str| name.strip_prefix(prefix)?.split_once('.')?.0.parse::<usize>().ok();
    // A file has at most one block per tensor, whatever the numbers in the names.
    weights.names().filter_map(number).max().map_or(0, |last| (last.saturating_add(1)).min(weights.names().len()))
}

/// Takes the number of heads from the preset with the same sizes.
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

/// Sets what all configurations of this layout share.
pub(super) fn finish(mut config: ClipConfig, activation: Activation) -> ClipConfig {
    config.vision.activation = activation;
    config.text.activation = activation;
    config.text.read_at = Some(ReadAt::LargestId);
    config.text.pad_token =
        config.text.pad_token.min(u32::try_from(config.text.vocab_size).unwrap_or(u32::MAX).saturating_sub(1));
    config
}

/// Converts weights in OpenAI's layout to transformers' names and layout, without reading tensors.
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
    let renamed = table.iter().find_map(|(theirs, ours)| {
        let rest = name.strip_prefix(theirs)?;
        (theirs.ends_with('.') || rest.is_empty()).then(|| format!("{ours}{rest}"))
    });
    renamed.unwrap_or_else(|| name.to_owned())
}

/// Returns the image processor of OpenAI's code and open_clip's, which is torchvision's.
pub(super) fn openai_processor(vision: &VisionTransformerConfig) -> ImageProcessor {
    ImageProcessor::new(vision).with_crop_rounding(CropRounding::HalfEven)
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
}
