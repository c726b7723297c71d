//! The decoder's three folders.

use std::path::Path;

use dalle2_core::diffusers::{IndexEntry, UnclipScheduler, VERSION, load_weights, save_weights};
use dalle2_core::diffusion::VarianceType;
use dalle2_core::store::{CONFIG_FILE, Fields, write_json};
use dalle2_core::{ConfigError, EmbeddingScale, Error, FloatType, Reading, Result};
use serde_json::{Map, Value, json};

use super::names::{conditioning_tensor_name, unet_tensor_name};
use super::unet::{self, Class};
use crate::conditioning::ContextOrder;
use crate::{DecoderConfig, DecoderNetwork};

const UNET: &str = "decoder";
const TEXT_PROJ: &str = "text_proj";
const SCHEDULER: &str = "decoder_scheduler";
const TEXT_PROJ_CLASS: &str = "UnCLIPTextProjModel";
/// Steps and guidance of the reference pipeline when a call names none.
const STEPS: usize = 25;
const GUIDANCE: f64 = 8.0;

/// The JSON files of a decoder.
#[derive(Debug, Clone)]
pub(crate) struct DecoderFiles {
    unet: Map<String, Value>,
    text_proj: Map<String, Value>,
    scheduler: Map<String, Value>,
}

/// Reads the settings.
pub(crate) fn read_decoder(root: &Path) -> Result<(DecoderConfig, DecoderFiles)> {
    let unet = unet::read(&root.join(UNET), Class::Conditional)?;
    let (scheduler, scheduler_json) = UnclipScheduler::read(root.join(SCHEDULER))?;
    let text_proj = Fields::read(root.join(TEXT_PROJ).join(CONFIG_FILE))?;
    text_proj.class(TEXT_PROJ_CLASS)?;
    text_proj.no_others(&[
        "clip_extra_context_tokens",
        "clip_embeddings_dim",
        "time_embed_dim",
        "cross_attention_dim",
    ])?;
    for (key, needed) in [
        ("time_embed_dim", unet.config.time_dim()),
        ("cross_attention_dim", unet.config.context_dim.unwrap_or_default()),
    ] {
        let found: usize = text_proj.require(key)?;
        if found != needed {
            return Err(text_proj.error(key, format!("is {found}, the U-Net in `{UNET}` needs {needed}")));
        }
    }
    let embed_dim = text_proj.get("clip_embeddings_dim", 768)?;
    let config = DecoderConfig {
        image_size: unet.sample_size,
        embed_dim,
        token_width: embed_dim,
        context_tokens: text_proj.get("clip_extra_context_tokens", 4)?,
        pooled_text: true,
        self_conditioning: false,
        caption_encoder: None,
        inpainting: false,
        embedding_scale: EmbeddingScale::None,
        unet: unet.config,
        diffusion: scheduler.diffusion_config(STEPS, GUIDANCE),
    };
    config.validate().map_err(|e| Error::format(root.join(UNET).join(CONFIG_FILE), e.to_string()))?;
    let text_proj = text_proj.object().clone();
    Ok((config, DecoderFiles { unet: unet.json, text_proj, scheduler: scheduler_json }))
}

/// Reads the weights into a network of the settings.
pub(crate) fn load_decoder(reading: Reading, network: DecoderNetwork, root: &Path) -> Result<DecoderNetwork> {
    let DecoderNetwork { unet, conditioning } = network;
    let unet = load_weights(reading, unet, &root.join(UNET), &unet_tensor_name)?;
    let conditioning = load_weights(reading, conditioning, &root.join(TEXT_PROJ), &conditioning_tensor_name)?;
    Ok(DecoderNetwork { unet, conditioning: conditioning.reorder_context(ContextOrder::FromChannelsFirst) })
}

/// What keeps a decoder from being one of diffusers.
pub(crate) fn decoder_faults(config: &DecoderConfig) -> Vec<String> {
    let mut faults = unet::faults(&config.unet, Class::Conditional, "unet");
    let mut needs = |holds: bool, field: &str, value: String, expected: &str| {
        if !holds {
            faults.push(ConfigError::new(field, value, expected).to_string());
        }
    };
    let (width, scale) = (config.token_width, &config.embedding_scale);
    needs(config.pooled_text, "pooled_text", "false".into(), "UnCLIPTextProjModel always adds z_t to the timestep");
    needs(width == config.embed_dim, "token_width", width.to_string(), "must equal embed_dim in UnCLIPTextProjModel");
    needs(
        *scale == EmbeddingScale::None,
        "embedding_scale",
        format!("{scale:?}"),
        "diffusers does not scale: use None",
    );
    for (field, set) in [("self_conditioning", config.self_conditioning), ("inpainting", config.inpainting)] {
        needs(!set, field, "true".into(), "UnCLIPPipeline's decoder reads the noisy image only");
    }
    let own = config.caption_encoder.is_some();
    needs(!own, "caption_encoder", "set".into(), "UnCLIPTextProjModel reads the text encoder's tokens: leave it out");
    let variance = config.diffusion.variance;
    let learned = variance == VarianceType::LearnedRange;
    needs(learned, "diffusion.variance", format!("{variance:?}"), "diffusers guides decoders of LearnedRange only");
    faults.extend(UnclipScheduler::faults(&config.diffusion));
    faults.into_iter().map(|fault| format!("decoder: {fault}")).collect()
}

/// The JSON files for settings without faults.
pub(crate) fn decoder_files(config: &DecoderConfig) -> DecoderFiles {
    let text_proj = json!({
        "_class_name": TEXT_PROJ_CLASS,
        "_diffusers_version": VERSION,
        "clip_embeddings_dim": config.embed_dim,
        "clip_extra_context_tokens": config.context_tokens,
        "cross_attention_dim": config.unet.context_dim,
        "time_embed_dim": config.unet.time_dim(),
    });
    DecoderFiles {
        unet: unet::to_json(&config.unet, config.image_size, Class::Conditional),
        text_proj: text_proj.as_object().cloned().unwrap_or_default(),
        scheduler: UnclipScheduler::new(&config.diffusion, STEPS, GUIDANCE).to_json(),
    }
}

/// Writes the folders.
pub(crate) fn save_decoder(
    network: DecoderNetwork,
    files: &DecoderFiles,
    root: &Path,
    float_type: FloatType,
) -> Result<Vec<IndexEntry>> {
    let (unet_dir, text_proj_dir) = (root.join(UNET), root.join(TEXT_PROJ));
    save_weights(&network.unet, &unet_dir, float_type, &unet_tensor_name)?;
    write_json(unet_dir.join(CONFIG_FILE), &files.unet)?;
    let conditioning = network.conditioning.reorder_context(ContextOrder::ToChannelsFirst);
    save_weights(&conditioning, &text_proj_dir, float_type, &conditioning_tensor_name)?;
    write_json(text_proj_dir.join(CONFIG_FILE), &files.text_proj)?;
    UnclipScheduler::write(&root.join(SCHEDULER), &files.scheduler)?;
    let [library, class] = UnclipScheduler::ENTRY;
    Ok(vec![
        IndexEntry::new(UNET, "diffusers", Class::Conditional.name()),
        IndexEntry::new(TEXT_PROJ, "unclip", TEXT_PROJ_CLASS),
        IndexEntry::new(SCHEDULER, library, class),
    ])
}
