//! The tensor names of diffusers' unCLIP models for our field paths.

/// Field paths of the U-Net.
const UNET: [(&str, &str); 7] = [
    ("conv_in", "conv_in"),
    ("conv_out", "conv_out"),
    ("norm_out", "conv_norm_out"),
    ("time_linear_1", "time_embedding.linear_1"),
    ("time_linear_2", "time_embedding.linear_2"),
    ("mid", "mid_block"),
    ("down", "down_blocks"),
];

/// Field paths of the projections of the decoder's conditions.
const CONDITIONING: [(&str, &str); 6] = [
    ("null_embedding", "learned_classifier_free_guidance_embeddings"),
    ("embedding_to_time", "clip_image_embeddings_project_to_time_embeddings"),
    ("pooled_to_time", "embedding_proj"),
    ("embedding_to_context", "clip_extra_context_tokens_proj"),
    ("token_proj", "encoder_hidden_states_proj"),
    ("token_norm", "text_encoder_hidden_states_norm"),
];

/// The checkpoint name for a field path of [`UNet`](crate::unet::UNet).
pub(super) fn unet_tensor_name(path: &str) -> String {
    let (name, resampler) = match path.strip_prefix("up.") {
        Some(rest) => (format!("up_blocks.{rest}"), ".upsamplers.0."),
        None => (replace_prefix(&UNET, path), ".downsamplers.0."),
    };
    name.replace(".resampler.", resampler).replace(".to_out.", ".to_out.0.")
}

/// The checkpoint name for a field path of [`Conditioning`](crate::Conditioning).
pub(super) fn conditioning_tensor_name(path: &str) -> String {
    replace_prefix(&CONDITIONING, path)
}

fn replace_prefix(table: &[(&str, &str)], path: &str) -> String {
    let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
    let name = table.iter().find_map(|(ours, theirs)| (*ours == first).then_some(*theirs)).unwrap_or(first);
    match rest {
        Some(rest) => format!("{name}.{rest}"),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_public_checkpoints() {
        for (ours, theirs) in [
            ("conv_in.weight", "conv_in.weight"),
            ("norm_out.bias", "conv_norm_out.bias"),
            ("time_linear_2.weight", "time_embedding.linear_2.weight"),
            ("down.1.attentions.0.to_out.weight", "down_blocks.1.attentions.0.to_out.0.weight"),
            ("down.0.resampler.conv1.bias", "down_blocks.0.downsamplers.0.conv1.bias"),
            ("mid.attentions.0.add_k_proj.weight", "mid_block.attentions.0.add_k_proj.weight"),
            ("up.2.resampler.time_emb_proj.weight", "up_blocks.2.upsamplers.0.time_emb_proj.weight"),
            ("up.0.resnets.3.conv_shortcut.weight", "up_blocks.0.resnets.3.conv_shortcut.weight"),
        ] {
            assert_eq!(unet_tensor_name(ours), theirs);
        }
        for (ours, theirs) in [
            ("null_embedding", "learned_classifier_free_guidance_embeddings"),
            ("token_norm.weight", "text_encoder_hidden_states_norm.weight"),
            ("embedding_to_context.bias", "clip_extra_context_tokens_proj.bias"),
        ] {
            assert_eq!(conditioning_tensor_name(ours), theirs);
        }
    }
}
