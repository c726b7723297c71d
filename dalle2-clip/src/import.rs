//! Maps field paths to the tensor names of Hugging Face's CLIP, which are those of all our files.

/// Field paths of a transformer block, and the names in checkpoints.
const BLOCK: [(&str, &str); 8] = [
    ("norm1", "layer_norm1"),
    ("attn.query", "self_attn.q_proj"),
    ("attn.key", "self_attn.k_proj"),
    ("attn.value", "self_attn.v_proj"),
    ("attn.output", "self_attn.out_proj"),
    ("norm2", "layer_norm2"),
    ("mlp.up", "mlp.fc1"),
    ("mlp.down", "mlp.fc2"),
];

/// Field paths of the text tower, and the names in checkpoints.
const TEXT: [(&str, &str); 5] = [
    ("token_embedding", "text_model.embeddings.token_embedding"),
    ("position_embedding", "text_model.embeddings.position_embedding"),
    ("transformer.layers", "text_model.encoder.layers"),
    ("final_norm", "text_model.final_layer_norm"),
    ("projection", "text_projection"),
];

/// Field paths of the vision tower, and the names in checkpoints. `pre_layrnorm` is the spelling of the checkpoints.
const VISION: [(&str, &str); 7] = [
    ("class_embedding", "vision_model.embeddings.class_embedding"),
    ("patch_embedding", "vision_model.embeddings.patch_embedding"),
    ("position_embedding", "vision_model.embeddings.position_embedding"),
    ("pre_norm", "vision_model.pre_layrnorm"),
    ("transformer.layers", "vision_model.encoder.layers"),
    ("post_norm", "vision_model.post_layernorm"),
    ("projection", "visual_projection"),
];

/// Returns the checkpoint name of a field path of [`TextTransformer`](crate::TextTransformer).
pub(crate) fn text_tensor_name(path: &str) -> String {
    tower_name(&TEXT, path)
}

/// Returns the checkpoint name of a field path of [`VisionTransformer`](crate::VisionTransformer).
pub(crate) fn vision_tensor_name(path: &str) -> String {
    tower_name(&VISION, path)
}

/// Returns the checkpoint name of a field path of [`Clip`](crate::Clip).
pub(crate) fn clip_tensor_name(path: &str) -> String {
    match path.split_once('.') {
        Some(("text", rest)) => text_tensor_name(rest),
        Some(("vision", rest)) => vision_tensor_name(rest),
        _ => path.to_owned(),
    }
}

fn tower_name(table: &[(&str, &'static str)], path: &str) -> String {
    let Some((name, rest)) = replace_prefix(table, path) else {
        return path.to_owned();
    };
    // In a block, the rest is ".N.<field path in the block>".
    match rest.strip_prefix('.').and_then(|rest| rest.split_once('.')) {
        Some((layer, field)) if name.ends_with(".layers") => match replace_prefix(&BLOCK, field) {
            Some((field, parameter)) => format!("{name}.{layer}.{field}{parameter}"),
            None => format!("{name}.{layer}.{field}"),
        },
        _ => format!("{name}{rest}"),
    }
}

/// Returns the table's name of the first field of `path`, and the rest of the path.
fn replace_prefix<'a>(table: &[(&str, &'static str)], path: &'a str) -> Option<(&'static str, &'a str)> {
    table.iter().find_map(|(ours, theirs)| {
        let rest = path.strip_prefix(ours)?;
        (rest.is_empty() || rest.starts_with('.')).then_some((*theirs, rest))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_equal_those_of_the_public_checkpoints() {
        for (ours, theirs) in [
            ("text.token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
            ("text.transformer.layers.11.attn.output.bias", "text_model.encoder.layers.11.self_attn.out_proj.bias"),
            ("text.transformer.layers.0.norm2.weight", "text_model.encoder.layers.0.layer_norm2.weight"),
            ("text.projection.weight", "text_projection.weight"),
            ("vision.class_embedding", "vision_model.embeddings.class_embedding"),
            ("vision.pre_norm.bias", "vision_model.pre_layrnorm.bias"),
            ("vision.transformer.layers.3.mlp.down.weight", "vision_model.encoder.layers.3.mlp.fc2.weight"),
            ("vision.projection.weight", "visual_projection.weight"),
            ("logit_scale", "logit_scale"),
        ] {
            assert_eq!(clip_tensor_name(ours), theirs);
        }
    }
}
