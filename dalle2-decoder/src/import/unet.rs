//! The settings of diffusers' U-Nets: which of them this library's network expresses, and what they are called there.

use std::path::Path;

use dalle2_core::diffusers::VERSION;
use dalle2_core::store::{CONFIG_FILE, Fields};
use dalle2_core::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::unet::{TimeConditioning, UNetConfig, UNetVariations};

/// ε of attention's norms, which is not configurable there.
const ATTENTION_EPS: f64 = 1e-5;

/// The two classes of U-Nets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// With attention over pixels and context.
    Conditional,
    /// Without context.
    Plain,
}

/// A setting that is one value for all levels or a list of one for each.
#[derive(Deserialize)]
#[serde(untagged)]
enum PerLevel {
    Same(usize),
    Each(Vec<usize>),
}

/// A network's settings in our terms.
#[derive(Debug)]
pub(super) struct ReadUNet {
    pub(super) config: UNetConfig,
    /// Side of the images in pixels.
    pub(super) sample_size: usize,
    /// The file as it is.
    pub(super) json: Map<String, Value>,
}

impl Class {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Conditional => "UNet2DConditionModel",
            Self::Plain => "UNet2DModel",
        }
    }

    fn blocks(self, direction: &str) -> [(String, bool); 2] {
        [(format!("Resnet{direction}sampleBlock2D"), false), (format!("SimpleCrossAttn{direction}Block2D"), true)]
    }

    fn mid_block(self) -> &'static str {
        match self {
            Self::Conditional => "UNetMidBlock2DSimpleCrossAttn",
            Self::Plain => "UNetMidBlock2D",
        }
    }
}

/// Reads `dir/config.json`.
pub(super) fn read(dir: &Path, class: Class) -> Result<ReadUNet> {
    let fields = Fields::read(dir.join(CONFIG_FILE))?;
    fields.class(class.name())?;
    check_fixed(&fields, class)?;

    let channels: Vec<usize> = fields.require("block_out_channels")?;
    let levels = channels.len();
    let attention = read_blocks(&fields, "down_block_types", levels, class, "Down")?;
    let mut up_attention = read_blocks(&fields, "up_block_types", levels, class, "Up")?;
    up_attention.reverse();
    let time_conditioning = match fields.get("resnet_time_scale_shift", "default".to_owned())?.as_str() {
        "default" => TimeConditioning::Additive,
        "scale_shift" => TimeConditioning::Film,
        other => {
            let message = format!("is {other:?}, expected \"default\" or \"scale_shift\"");
            return Err(fields.error("resnet_time_scale_shift", message));
        }
    };
    let norm_eps = fields.get("norm_eps", ATTENTION_EPS)?;
    let mid_attention = match class {
        Class::Conditional => true,
        Class::Plain => fields.get("add_attention", true)?,
    };
    if mid_attention && class == Class::Plain {
        check_plain_attention(&fields, time_conditioning, norm_eps)?;
    }
    let head_dims = per_level(&fields, "attention_head_dim", 8, levels)?;
    let res_blocks = per_level(&fields, "layers_per_block", 2, levels)?;
    let head_dim = head_dims.first().copied().unwrap_or(1);
    // On the way up the reference goes through its list of head sizes from the front too, but from the coarsest level.
    let up_head_dims: Vec<usize> = head_dims.iter().rev().copied().collect();
    let n_res_blocks = res_blocks.first().copied().unwrap_or(1);
    let config = UNetConfig {
        in_channels: fields.require("in_channels")?,
        out_channels: fields.require("out_channels")?,
        n_res_blocks,
        patch: 1,
        head_dim,
        n_groups: fields.get("norm_num_groups", 32)?,
        context_dim: match class {
            Class::Conditional => Some(context_dim(&fields, levels)?),
            Class::Plain => None,
        },
        time_dim: fields.get("time_embedding_dim", None)?,
        time_conditioning,
        dropout: fields.get("dropout", 0.0)?,
        variations: UNetVariations {
            res_blocks: res_blocks.iter().any(|n| *n != n_res_blocks).then_some(res_blocks),
            up_head_dims: (up_head_dims != head_dims).then_some(up_head_dims),
            head_dims: head_dims.iter().any(|dim| *dim != head_dim).then_some(head_dims),
            up_attention: (up_attention != attention).then_some(up_attention),
            mid_attention: (attention.last() != Some(&mid_attention)).then_some(mid_attention),
            norm_eps: (norm_eps != ATTENTION_EPS).then_some(norm_eps),
        },
        channels,
        attention,
    };
    config.validate().map_err(|e| Error::format(fields.path(), e.to_string()))?;
    let sample_size = match per_level(&fields, "sample_size", 0, 2)?.as_slice() {
        [height, width] if height == width && *height > 0 => *height,
        _ => return Err(fields.error("sample_size", "must be the side of square images in pixels")),
    };
    Ok(ReadUNet { config, sample_size, json: fields.object().clone() })
}

/// Settings for which this library has one value.
fn check_fixed(fields: &Fields, class: Class) -> Result<()> {
    fields.only("act_fn", &[json!("silu"), json!("swish")])?;
    fields.only("time_embedding_type", &[json!("positional")])?;
    fields.only("flip_sin_to_cos", &[json!(true)])?;
    fields.only("freq_shift", &[json!(0)])?;
    fields.only("center_input_sample", &[json!(false)])?;
    fields.only("mid_block_scale_factor", &[json!(1)])?;
    fields.only("num_class_embeds", &[])?;
    if fields.object().get("mid_block_type").is_some_and(Value::is_null) {
        return Err(fields.error("mid_block_type", format!("is null, expected {:?}", class.mid_block())));
    }
    let known = ["act_fn", "attention_head_dim", "block_out_channels", "down_block_types", "downsample_padding"];
    let known = known.into_iter().chain(["dropout", "flip_sin_to_cos", "freq_shift", "in_channels", "norm_eps"]);
    let known = known.chain(["layers_per_block", "mid_block_scale_factor", "mid_block_type", "norm_num_groups"]);
    let known = known.chain(["out_channels", "resnet_time_scale_shift", "sample_size", "time_embedding_dim"]);
    let known = known.chain(["time_embedding_type", "up_block_types"]);
    let others: &[&str] = match class {
        Class::Conditional => {
            let mid_block: String = fields.require("mid_block_type")?;
            if mid_block != class.mid_block() {
                let message = format!("is {mid_block:?}, expected {:?}", class.mid_block());
                return Err(fields.error("mid_block_type", message));
            }
            let embedding: Option<String> = fields.get("class_embed_type", None)?;
            if embedding.as_deref() != Some("identity") {
                let message =
                    format!("is {embedding:?}, expected \"identity\": that is where the image embedding enters");
                return Err(fields.error("class_embed_type", message));
            }
            for (key, only) in [
                ("conv_in_kernel", json!(3)),
                ("conv_out_kernel", json!(3)),
                ("resnet_out_scale_factor", json!(1)),
                ("attention_type", json!("default")),
            ] {
                fields.only(key, &[only])?;
            }
            for key in ["only_cross_attention", "mid_block_only_cross_attention", "resnet_skip_time_act"] {
                fields.only(key, &[json!(false)])?;
            }
            fields.only("time_embedding_act_fn", &[])?;
            // These belong to kinds of blocks and embeddings that are refused above.
            &[
                "class_embed_type",
                "cross_attention_dim",
                "conv_in_kernel",
                "conv_out_kernel",
                "resnet_out_scale_factor",
                "attention_type",
                "addition_embed_type_num_heads",
                "transformer_layers_per_block",
                "upcast_attention",
                "use_linear_projection",
                "dual_cross_attention",
            ]
        }
        Class::Plain => {
            fields.only("mid_block_type", &[json!(class.mid_block())])?;
            &["add_attention", "attn_norm_num_groups", "downsample_type", "upsample_type"]
        }
    };
    fields.no_others(&known.chain(others.iter().copied()).collect::<Vec<_>>())
}

/// The attention in the middle of a network without context has our form only where its norm is that of our block.
fn check_plain_attention(fields: &Fields, time: TimeConditioning, norm_eps: f64) -> Result<()> {
    let groups: usize = fields.get("norm_num_groups", 32)?;
    let attention_groups: Option<usize> = fields.get("attn_norm_num_groups", None)?;
    let same = attention_groups.map_or(time == TimeConditioning::Additive, |own| own == groups);
    match same && norm_eps == ATTENTION_EPS {
        true => Ok(()),
        false => Err(fields.error(
            "add_attention",
            "is true (or missing, which means true); this library can express that with a norm of the network's groups \
             and an epsilon of 1e-5 only",
        )),
    }
}

/// Which levels of a direction have attention, in the order of the file.
fn read_blocks(fields: &Fields, key: &str, levels: usize, class: Class, direction: &str) -> Result<Vec<bool>> {
    let names: Vec<String> = fields.require(key)?;
    if names.len() != levels {
        let message = format!("has {} entries, `block_out_channels` has {levels}", names.len());
        return Err(fields.error(key, message));
    }
    let known = class.blocks(direction);
    names
        .iter()
        .map(|name| match known.iter().find(|(known, _)| known == name) {
            Some((_, attention)) if !*attention || class == Class::Conditional => Ok(*attention),
            _ => {
                let expected = match class {
                    Class::Conditional => format!("{:?} or {:?}", known[0].0, known[1].0),
                    Class::Plain => format!("{:?}", known[0].0),
                };
                Err(fields.error(key, format!("has {name:?}; this library can express {expected} only")))
            }
        })
        .collect()
}

fn per_level(fields: &Fields, key: &str, default: usize, levels: usize) -> Result<Vec<usize>> {
    match fields.get(key, PerLevel::Same(default))? {
        PerLevel::Same(value) => Ok(vec![value; levels]),
        PerLevel::Each(values) if values.len() == levels => Ok(values),
        PerLevel::Each(values) => {
            Err(fields.error(key, format!("has {} entries, expected one value or {levels}", values.len())))
        }
    }
    .and_then(|values| match values.contains(&0) {
        true => Err(fields.error(key, "must be at least 1")),
        false => Ok(values),
    })
}

fn context_dim(fields: &Fields, levels: usize) -> Result<usize> {
    let dims = per_level(fields, "cross_attention_dim", 1280, levels)?;
    match dims.first() {
        Some(first) if dims.iter().all(|dim| dim == first) => Ok(*first),
        _ => Err(fields.error("cross_attention_dim", "differs between levels; this library has one width of context")),
    }
}

/// What keeps a network from being one of a class.
pub(super) fn faults(config: &UNetConfig, class: Class, field: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if config.patch != 1 {
        faults.push(format!("`{field}.patch` = {}: {} has no such stem: use 1", config.patch, class.name()));
    }
    let levels = config.channels.len();
    if (0..levels)
        .any(|level| config.up_attention(level) && config.up_head_dim(level) != config.head_dim(levels - 1 - level))
    {
        let needed = "must be `head_dims` backwards, which is how diffusers reads its list";
        faults.push(format!("`{field}.variations.up_head_dims` = {:?}: {needed}", config.variations.up_head_dims));
    }
    match class {
        Class::Conditional if !config.mid_attention() => {
            faults.push(format!("`{field}.variations.mid_attention` = false: {} always has it", class.name()));
        }
        Class::Plain if config.variations.res_blocks.is_some() => {
            faults.push(format!("`{field}.variations.res_blocks` is set: {} has one number", class.name()));
        }
        Class::Plain
            if config.mid_attention()
                && (config.norm_eps() != ATTENTION_EPS || config.time_conditioning != TimeConditioning::Additive) =>
        {
            faults.push(format!("`{field}.variations.mid_attention`: {} has another norm there", class.name()));
        }
        _ => {}
    }
    faults
}

/// The file's content for a network without faults.
pub(super) fn to_json(config: &UNetConfig, sample_size: usize, class: Class) -> Map<String, Value> {
    let types = |direction: &str, attention: &mut dyn Iterator<Item = bool>| -> Vec<String> {
        let [(plain, _), (attending, _)] = class.blocks(direction);
        attention.map(|attends| if attends { attending.clone() } else { plain.clone() }).collect()
    };
    let levels = config.channels.len();
    let head_dim = match &config.variations.head_dims {
        Some(dims) => json!(dims),
        None => json!(config.head_dim),
    };
    let mut value = json!({
        "_class_name": class.name(),
        "_diffusers_version": VERSION,
        "act_fn": "silu",
        "attention_head_dim": head_dim,
        "block_out_channels": config.channels,
        "center_input_sample": false,
        "down_block_types": types("Down", &mut config.attention.iter().copied()),
        "downsample_padding": 1,
        "dropout": config.dropout,
        "flip_sin_to_cos": true,
        "freq_shift": 0,
        "in_channels": config.in_channels,
        "layers_per_block": match &config.variations.res_blocks {
            Some(blocks) => json!(blocks),
            None => json!(config.n_res_blocks),
        },
        "mid_block_scale_factor": 1,
        "mid_block_type": class.mid_block(),
        "norm_eps": config.norm_eps(),
        "norm_num_groups": config.n_groups,
        "num_class_embeds": null,
        "out_channels": config.out_channels,
        "resnet_time_scale_shift": match config.time_conditioning {
            TimeConditioning::Film => "scale_shift",
            TimeConditioning::Additive => "default",
        },
        "sample_size": sample_size,
        "time_embedding_dim": config.time_dim,
        "time_embedding_type": "positional",
        "up_block_types": types("Up", &mut (0..levels).rev().map(|level| config.up_attention(level))),
    });
    let extra = match class {
        Class::Conditional => json!({
            "addition_embed_type": null,
            "addition_embed_type_num_heads": 64,
            "addition_time_embed_dim": null,
            "attention_type": "default",
            "class_embed_type": "identity",
            "class_embeddings_concat": false,
            "conv_in_kernel": 3,
            "conv_out_kernel": 3,
            "cross_attention_dim": config.context_dim,
            "cross_attention_norm": null,
            "dual_cross_attention": false,
            "encoder_hid_dim": null,
            "encoder_hid_dim_type": null,
            "mid_block_only_cross_attention": null,
            "num_attention_heads": null,
            "only_cross_attention": false,
            "projection_class_embeddings_input_dim": null,
            "resnet_out_scale_factor": 1.0,
            "resnet_skip_time_act": false,
            "reverse_transformer_layers_per_block": null,
            "time_cond_proj_dim": null,
            "time_embedding_act_fn": null,
            "timestep_post_act": null,
            "transformer_layers_per_block": 1,
            "upcast_attention": false,
            "use_linear_projection": false,
        }),
        Class::Plain => json!({
            "add_attention": config.mid_attention(),
            "attn_norm_num_groups": null,
            "class_embed_type": null,
            "downsample_type": "conv",
            "num_train_timesteps": null,
            "upsample_type": "conv",
        }),
    };
    match (value.as_object_mut(), extra) {
        (Some(object), Value::Object(extra)) => {
            object.extend(extra);
            std::mem::take(object)
        }
        _ => Map::new(),
    }
}
