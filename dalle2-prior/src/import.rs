//! The diffusion prior in the layout of diffusers' unCLIP pipelines: the folders `prior` (`PriorTransformer`) and
//! `prior_scheduler` (`UnCLIPScheduler`).
//!
//! There the statistics of the embeddings are tensors of the network; here they are the configuration's
//! [`EmbeddingScale`]. Positions and query have one more axis there.

use std::path::Path;

use burn::module::Param;
use burn::nn::{Initializer, Linear};
use burn::prelude::*;
use dalle2_core::diffusers::{IndexEntry, UnclipScheduler, VERSION, WEIGHTS_STEM, load_weights, save_weights};
use dalle2_core::diffusion::{Clip, DiffusionConfig, VarianceType};
use dalle2_core::nn::{LayerNorm, Transformer};
use dalle2_core::store::{CONFIG_FILE, Fields, Weights, write_json};
use dalle2_core::{ConfigError, EmbeddingScale, Error, FloatType, Reading, Result};
use serde_json::{Map, Value, json};

use crate::{DiffusionPriorConfig, PriorNetwork};

const FOLDER: &str = "prior";
const SCHEDULER: &str = "prior_scheduler";
const CLASS: &str = "PriorTransformer";
/// Tokens after the caption's.
const EXTRA_TOKENS: usize = 4;
/// Steps and guidance of the reference pipeline when a call names none.
const STEPS: usize = 25;
const GUIDANCE: f64 = 4.0;

/// Field paths of the network and their names in the checkpoints.
const NETWORK: [(&str, &str); 12] = [
    ("token_proj", "encoder_hidden_states_proj"),
    ("text_proj", "embedding_proj"),
    ("time_in", "time_embedding.linear_1"),
    ("time_out", "time_embedding.linear_2"),
    ("image_proj", "proj_in"),
    ("query", "prd_embedding"),
    ("positions", "positional_embedding"),
    ("transformer.layers", "transformer_blocks"),
    ("norm", "norm_out"),
    ("output", "proj_to_clip_embeddings"),
    ("clip_mean", "clip_mean"),
    ("clip_std", "clip_std"),
];

/// Field paths of a transformer block.
const BLOCK: [(&str, &str); 8] = [
    ("norm1", "norm1"),
    ("attn.query", "attn1.to_q"),
    ("attn.key", "attn1.to_k"),
    ("attn.value", "attn1.to_v"),
    ("attn.output", "attn1.to_out.0"),
    ("norm2", "norm3"),
    ("mlp.up", "ff.net.0.proj"),
    ("mlp.down", "ff.net.2"),
];

/// The JSON files of a prior.
#[derive(Debug, Clone)]
pub(crate) struct PriorFiles {
    network: Map<String, Value>,
    scheduler: Map<String, Value>,
}

/// The network with the shapes it has on disk.
#[derive(Module, Debug)]
struct OnDisk {
    token_proj: Linear,
    text_proj: Linear,
    time_in: Linear,
    time_out: Linear,
    image_proj: Linear,
    query: Param<Tensor<3>>,
    positions: Param<Tensor<3>>,
    transformer: Transformer,
    norm: LayerNorm,
    output: Linear,
    clip_mean: Param<Tensor<2>>,
    clip_std: Param<Tensor<2>>,
}

/// Reads the settings, and the statistics of the embeddings.
pub(crate) fn read_prior(root: &Path) -> Result<(DiffusionPriorConfig, PriorFiles)> {
    let dir = root.join(FOLDER);
    let fields = Fields::read(dir.join(CONFIG_FILE))?;
    fields.class(CLASS)?;
    let embed_dim = fields.get("embedding_dim", 768)?;
    let n_heads = fields.get("num_attention_heads", 32)?;
    let head_dim: usize = fields.get("attention_head_dim", 64)?;
    let d_model = head_dim.checked_mul(n_heads).filter(|d| *d > 0);
    let d_model = d_model.ok_or_else(|| fields.error("attention_head_dim", "must give a width above 0"))?;
    check_fixed(&fields, embed_dim, d_model)?;
    let (scheduler, scheduler_json) = UnclipScheduler::read(root.join(SCHEDULER))?;
    if scheduler.variance != VarianceType::FixedSmall {
        let message = "`variance_type` is learned_range, expected \"fixed_small_log\": a prior has no variance output";
        return Err(Error::format(root.join(SCHEDULER).join(dalle2_core::diffusers::SCHEDULER_FILE), message));
    }
    let config = DiffusionPriorConfig {
        embed_dim,
        token_width: embed_dim,
        context_length: fields.get("num_embeddings", 77)?,
        d_model,
        n_heads,
        n_layers: fields.get("num_layers", 20)?,
        dropout: fields.get("dropout", 0.0)?,
        image_scale: read_statistics(&dir, embed_dim)?,
        text_scale: EmbeddingScale::None,
        candidates: 1,
        self_conditioning: false,
        analytic_variance: None,
        diffusion: scheduler.diffusion_config(STEPS, GUIDANCE),
    };
    config.validate().map_err(|e| Error::format(fields.path(), e.to_string()))?;
    Ok((config, PriorFiles { network: fields.object().clone(), scheduler: scheduler_json }))
}

/// Settings for which this library has one value.
fn check_fixed(fields: &Fields, embed_dim: usize, d_model: usize) -> Result<()> {
    for (key, only) in [
        ("additional_embeddings", json!(EXTRA_TOKENS)),
        ("time_embed_act_fn", json!("silu")),
        ("encoder_hid_proj_type", json!("linear")),
        ("added_emb_type", json!("prd")),
        ("time_embed_dim", json!(d_model)),
        ("embedding_proj_dim", json!(embed_dim)),
        ("clip_embed_dim", json!(embed_dim)),
    ] {
        fields.only(key, &[only])?;
    }
    for key in ["encoder_hid_proj_type", "added_emb_type"] {
        if fields.object().get(key).is_some_and(Value::is_null) {
            return Err(fields.error(key, "is null; this library can express the networks of unCLIP only"));
        }
    }
    fields.no_others(&[
        "embedding_dim",
        "num_attention_heads",
        "attention_head_dim",
        "num_layers",
        "num_embeddings",
        "dropout",
        "additional_embeddings",
        "time_embed_act_fn",
        "encoder_hid_proj_type",
        "added_emb_type",
        "time_embed_dim",
        "embedding_proj_dim",
        "clip_embed_dim",
    ])
}

/// Mean and deviation of the embeddings, which are tensors among the weights.
fn read_statistics(dir: &Path, embed_dim: usize) -> Result<EmbeddingScale> {
    let weights = Weights::find(dir, &[WEIGHTS_STEM])?;
    let read = |name: &str| {
        // A tensor that is missing or of another shape is reported with all others when the network is read.
        match weights.shape(name) {
            Some([1, width]) if *width == embed_dim => weights.read(name).map(Some),
            _ => Ok(None),
        }
    };
    match (read("clip_mean")?, read("clip_std")?) {
        (Some(mean), Some(std)) => Ok(EmbeddingScale::MeanStd { mean, std }),
        _ => Ok(EmbeddingScale::None),
    }
}

/// Reads the weights into a network of the settings.
pub(crate) fn load_prior(
    reading: Reading,
    network: PriorNetwork,
    config: &DiffusionPriorConfig,
    root: &Path,
) -> Result<PriorNetwork> {
    let device = network.query.lazy_device();
    // Zeros that are not computed: what a file does not have room for must not be allocated either.
    let rows = |n: usize| Initializer::Zeros.init([1, n, config.d_model], &device);
    let positions = [rows(1), rows(config.context_length + EXTRA_TOKENS)];
    let statistics = [0; 2].map(|_| Initializer::Zeros.init([1, config.embed_dim], &device));
    let on_disk = OnDisk::new(network, positions, statistics);
    Ok(load_weights(reading, on_disk, &root.join(FOLDER), &tensor_name)?.into_network(config))
}

/// What keeps a prior from being one of diffusers.
pub(crate) fn prior_faults(config: &DiffusionPriorConfig) -> Vec<String> {
    let mut faults = Vec::new();
    let mut needs = |holds: bool, field: &str, value: String, expected: &str| {
        if !holds {
            faults.push(ConfigError::new(field, value, expected).to_string());
        }
    };
    let (width, text, image) = (config.token_width, &config.text_scale, &config.image_scale);
    needs(width == config.embed_dim, "token_width", width.to_string(), "must equal embed_dim in PriorTransformer");
    needs(*text == EmbeddingScale::None, "text_scale", format!("{text:?}"), "diffusers does not scale z_t: use None");
    let expressible = *image != EmbeddingScale::L2;
    needs(expressible, "image_scale", "L2".into(), "diffusers has a mean and a deviation only: use MeanStd");
    needs(
        config.diffusion.clip() != Clip::Ball,
        "x_start_bound",
        "ball".into(),
        "UnCLIPScheduler clamps to a range or not at all",
    );
    let alone = !config.self_conditioning;
    needs(alone, "self_conditioning", "true".into(), "PriorTransformer does not read its last estimate");
    let measured = config.analytic_variance.is_some();
    needs(
        !measured,
        "analytic_variance",
        "set".into(),
        "UnCLIPScheduler knows the posterior's variance only: leave it out",
    );
    // The ball is reported above, under the name that it has in the file.
    let clip = config.diffusion.clip.filter(|clip| *clip != Clip::Ball);
    faults.extend(UnclipScheduler::faults(&DiffusionConfig { clip, ..config.diffusion.clone() }));
    faults.into_iter().map(|fault| format!("prior: {fault}")).collect()
}

/// The JSON files for settings without faults.
pub(crate) fn prior_files(config: &DiffusionPriorConfig) -> PriorFiles {
    let network = json!({
        "_class_name": CLASS,
        "_diffusers_version": VERSION,
        "added_emb_type": "prd",
        "additional_embeddings": EXTRA_TOKENS,
        "attention_head_dim": config.d_model / config.n_heads,
        "clip_embed_dim": null,
        "dropout": config.dropout,
        "embedding_dim": config.embed_dim,
        "embedding_proj_dim": null,
        "embedding_proj_norm_type": null,
        "encoder_hid_proj_type": "linear",
        "norm_in_type": null,
        "num_attention_heads": config.n_heads,
        "num_embeddings": config.context_length,
        "num_layers": config.n_layers,
        "time_embed_act_fn": "silu",
        "time_embed_dim": null,
    });
    let scheduler = UnclipScheduler::new(&config.diffusion, STEPS, GUIDANCE);
    PriorFiles { network: network.as_object().cloned().unwrap_or_default(), scheduler: scheduler.to_json() }
}

/// Writes the folders.
pub(crate) fn save_prior(
    network: PriorNetwork,
    config: &DiffusionPriorConfig,
    files: &PriorFiles,
    root: &Path,
    float_type: FloatType,
) -> Result<Vec<IndexEntry>> {
    let (d, device) = (config.embed_dim, network.query.val().device());
    let statistics = match &config.image_scale {
        EmbeddingScale::MeanStd { mean, std } => [mean.clone(), std.clone()],
        EmbeddingScale::Constant { factor } => [vec![0.0; d], vec![(1.0 / factor) as f32; d]],
        EmbeddingScale::None | EmbeddingScale::L2 => [vec![0.0; d], vec![1.0; d]],
    };
    let statistics = statistics.map(|values| {
        let data = TensorData::new(values, [1, d]);
        Param::from_tensor(Tensor::from_data(data, (&device, burn::tensor::DType::F32)))
    });
    let dir = root.join(FOLDER);
    let positions = [&network.query, &network.positions];
    let positions = positions.map(|param| Param::from_tensor(param.val().unsqueeze::<3>()));
    save_weights(&OnDisk::new(network, positions, statistics), &dir, float_type, &tensor_name)?;
    write_json(dir.join(CONFIG_FILE), &files.network)?;
    UnclipScheduler::write(&root.join(SCHEDULER), &files.scheduler)?;
    let [library, class] = UnclipScheduler::ENTRY;
    Ok(vec![IndexEntry::new(FOLDER, "diffusers", CLASS), IndexEntry::new(SCHEDULER, library, class)])
}

impl OnDisk {
    /// With query and positions, mean and deviation of its own.
    fn new(
        network: PriorNetwork,
        [query, positions]: [Param<Tensor<3>>; 2],
        [clip_mean, clip_std]: [Param<Tensor<2>>; 2],
    ) -> Self {
        // Moved field by field: to clone a network is to draw its weights.
        Self {
            token_proj: network.token_proj,
            text_proj: network.text_proj,
            time_in: network.time_in,
            time_out: network.time_out,
            image_proj: network.image_proj,
            query,
            positions,
            transformer: network.transformer,
            norm: network.norm,
            output: network.output,
            clip_mean,
            clip_std,
        }
    }

    fn into_network(self, config: &DiffusionPriorConfig) -> PriorNetwork {
        let lead = |param: Param<Tensor<3>>| Param::from_tensor(param.val().squeeze_dim::<2>(0));
        PriorNetwork {
            token_proj: self.token_proj,
            text_proj: self.text_proj,
            time_in: self.time_in,
            time_out: self.time_out,
            image_proj: self.image_proj,
            estimate_proj: None,
            query: lead(self.query),
            positions: lead(self.positions),
            transformer: self.transformer,
            norm: self.norm,
            output: self.output,
            text_scale: config.text_scale.clone(),
            n_heads: config.n_heads,
        }
    }
}

/// The checkpoint name for a field path.
fn tensor_name(path: &str) -> String {
    let Some((name, rest)) = replace_prefix(&NETWORK, path) else {
        return path.to_owned();
    };
    // Below the blocks the rest is ".N.<field path in the block>".
    match rest.strip_prefix('.').and_then(|rest| rest.split_once('.')) {
        Some((layer, field)) if name == "transformer_blocks" => match replace_prefix(&BLOCK, field) {
            Some((field, parameter)) => format!("{name}.{layer}.{field}{parameter}"),
            None => format!("{name}.{layer}.{field}"),
        },
        _ => format!("{name}{rest}"),
    }
}

/// The table's name for the field that `path` starts with, and what follows the field.
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
    fn names_are_those_of_the_public_checkpoints() {
        for (ours, theirs) in [
            ("token_proj.weight", "encoder_hidden_states_proj.weight"),
            ("time_in.bias", "time_embedding.linear_1.bias"),
            ("query", "prd_embedding"),
            ("transformer.layers.19.attn.output.weight", "transformer_blocks.19.attn1.to_out.0.weight"),
            ("transformer.layers.0.mlp.up.bias", "transformer_blocks.0.ff.net.0.proj.bias"),
            ("transformer.layers.3.norm2.weight", "transformer_blocks.3.norm3.weight"),
            ("norm.weight", "norm_out.weight"),
        ] {
            assert_eq!(tensor_name(ours), theirs);
        }
    }

    #[test]
    fn a_preset_for_own_training_has_no_faults_and_others_name_theirs() {
        let karlo = DiffusionPriorConfig::karlo();
        assert_eq!(prior_faults(&karlo), Vec::<String>::new());
        let faults = prior_faults(&DiffusionPriorConfig::emoji(64, 32, 8)).join("\n");
        for field in ["token_width", "text_scale", "image_scale", "x_start_bound", "sampler"] {
            assert!(faults.contains(&format!("prior: `{field}`")), "{faults}");
        }
    }
}
