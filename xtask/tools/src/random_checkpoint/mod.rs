//! An unCLIP checkpoint with random weights in the layout of diffusers, described by its sizes.
//!
//! Names and shapes follow the published layout, not the library's models. Loading such a checkpoint is strict, so it
//! compares the two.

mod list;
mod unet;

use std::collections::BTreeMap;
use std::path::Path;

use dalle2::FloatType;
use dalle2::Result;
use dalle2::base::store::{WeightsWriter, write_json};
use dalle2::base::text::ClipTokenizer;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use list::List;
use unet::UNet;

/// Names and shapes.
pub type Tensors = BTreeMap<String, Vec<usize>>;

/// Padding token of Karlo's tokenizer: "!".
const PAD_TOKEN: u32 = 0;
const VERSION: &str = "0.36.0";

/// Sizes of a checkpoint of the unCLIP family.
pub struct Sizes {
    /// Width of the joint embedding space and of the text encoder.
    pub embed_dim: usize,
    /// Layers, heads and feed-forward width of the text encoder.
    pub text: [usize; 3],
    /// Layers, heads and head width of the prior.
    pub prior: [usize; 3],
    /// Side of the decoder's images.
    pub decoder_size: usize,
    /// Channels of the decoder's levels.
    pub decoder: Vec<usize>,
    /// Width of the decoder's context.
    pub context: usize,
    /// Width of the decoder's attention heads.
    pub head_dim: usize,
    /// Side of the super-resolution networks' images.
    pub super_res_size: usize,
    /// Channels of the super-resolution networks' levels.
    pub super_res: Vec<usize>,
    /// Residual blocks on each level.
    pub layers_per_block: usize,
    /// Groups of the norms in decoder and super-resolution networks.
    pub groups: [usize; 2],
}

/// A folder of the checkpoint.
pub struct Part {
    /// Name of the folder.
    pub folder: &'static str,
    /// Library and class in `model_index.json`.
    pub class: [&'static str; 2],
    /// Name and contents of the configuration file.
    pub config: (&'static str, Value),
    /// Name and tensors of the weights file, if there are weights.
    pub weights: Option<(&'static str, Tensors)>,
}

impl Sizes {
    /// Returns the sizes of Karlo v1 alpha: 3.3 G parameters.
    pub fn karlo() -> Self {
        Self {
            embed_dim: 768,
            text: [12, 12, 3072],
            prior: [20, 32, 64],
            decoder_size: 64,
            decoder: vec![320, 640, 960, 1280],
            context: 1536,
            head_dim: 64,
            super_res_size: 256,
            super_res: vec![320, 640, 960, 1280],
            layers_per_block: 3,
            groups: [32, 32],
        }
    }

    /// Returns sizes for tests: 16 px, upsampled to 32.
    pub fn tiny() -> Self {
        Self {
            embed_dim: 32,
            text: [2, 4, 48],
            prior: [2, 2, 12],
            decoder_size: 16,
            decoder: vec![16, 32],
            context: 20,
            head_dim: 8,
            super_res_size: 32,
            super_res: vec![8, 16],
            layers_per_block: 1,
            groups: [8, 4],
        }
    }

    /// Returns every folder except the tokenizer's.
    pub fn parts(&self) -> Vec<Part> {
        const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";
        let network = |folder, class, config, tensors| Part {
            folder,
            class: ["diffusers", class],
            config: ("config.json", config),
            weights: Some((WEIGHTS, tensors)),
        };
        let scheduler = |folder, variance: &str, prediction: &str, range: f64| Part {
            folder,
            class: ["diffusers", "UnCLIPScheduler"],
            config: (
                "scheduler_config.json",
                json!({
                    "_class_name": "UnCLIPScheduler", "_diffusers_version": VERSION, "num_train_timesteps": 1000,
                    "variance_type": variance, "prediction_type": prediction, "clip_sample": true,
                    "clip_sample_range": range, "beta_schedule": "squaredcos_cap_v2",
                }),
            ),
            weights: None,
        };
        let text_proj = network("text_proj", "UnCLIPTextProjModel", self.text_proj_config(), self.text_proj());
        vec![
            Part {
                folder: "text_encoder",
                class: ["transformers", "CLIPTextModelWithProjection"],
                config: ("config.json", self.text_config()),
                weights: Some(("model.safetensors", self.text_encoder())),
            },
            network("prior", "PriorTransformer", self.prior_config(), self.prior()),
            network("decoder", "UNet2DConditionModel", self.decoder_config(), self.decoder()),
            Part { class: ["unclip", "UnCLIPTextProjModel"], ..text_proj },
            network("super_res_first", "UNet2DModel", self.super_res_config(), self.super_res()),
            network("super_res_last", "UNet2DModel", self.super_res_config(), self.super_res()),
            scheduler("prior_scheduler", "fixed_small_log", "sample", 5.0),
            scheduler("decoder_scheduler", "learned_range", "epsilon", 1.0),
            scheduler("super_res_scheduler", "fixed_small_log", "epsilon", 1.0),
        ]
    }

    fn text_config(&self) -> Value {
        let [layers, heads, d_ff] = self.text;
        json!({
            "architectures": ["CLIPTextModelWithProjection"], "model_type": "clip_text_model", "dtype": "float16",
            "hidden_act": "quick_gelu", "hidden_size": self.embed_dim, "intermediate_size": d_ff,
            "layer_norm_eps": 1e-5, "max_position_embeddings": 77, "num_attention_heads": heads,
            "num_hidden_layers": layers, "projection_dim": self.embed_dim, "vocab_size": 49408,
            "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1, "attention_dropout": 0.0,
        })
    }

    fn text_encoder(&self) -> Tensors {
        let ([layers, _, d_ff], d) = (self.text, self.embed_dim);
        let mut list = List::default();
        list.add("text_model.embeddings.token_embedding.weight", &[49408, d]);
        list.add("text_model.embeddings.position_embedding.weight", &[77, d]);
        for layer in 0..layers {
            let name = |field: &str| format!("text_model.encoder.layers.{layer}.{field}");
            for field in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                list.linear(&name(&format!("self_attn.{field}")), d, d);
            }
            list.linear(&name("mlp.fc1"), d, d_ff);
            list.linear(&name("mlp.fc2"), d_ff, d);
            list.norm(&name("layer_norm1"), d);
            list.norm(&name("layer_norm2"), d);
        }
        list.norm("text_model.final_layer_norm", d);
        list.add("text_projection.weight", &[d, d]);
        list.0
    }

    fn prior_config(&self) -> Value {
        let [layers, heads, head_dim] = self.prior;
        json!({
            "_class_name": "PriorTransformer", "_diffusers_version": VERSION, "num_attention_heads": heads,
            "attention_head_dim": head_dim, "num_layers": layers, "embedding_dim": self.embed_dim,
            "num_embeddings": 77, "additional_embeddings": 4, "dropout": 0.0,
        })
    }

    fn prior(&self) -> Tensors {
        let ([layers, heads, head_dim], e) = (self.prior, self.embed_dim);
        let d = heads * head_dim;
        let mut list = List::default();
        list.linear("time_embedding.linear_1", d, d);
        list.linear("time_embedding.linear_2", d, d);
        for name in ["proj_in", "embedding_proj", "encoder_hidden_states_proj"] {
            list.linear(name, e, d);
        }
        list.add("positional_embedding", &[1, 77 + 4, d]);
        list.add("prd_embedding", &[1, 1, d]);
        for layer in 0..layers {
            let name = |field: &str| format!("transformer_blocks.{layer}.{field}");
            for field in ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"] {
                list.linear(&name(field), d, d);
            }
            list.linear(&name("ff.net.0.proj"), d, 4 * d);
            list.linear(&name("ff.net.2"), 4 * d, d);
            list.norm(&name("norm1"), d);
            list.norm(&name("norm3"), d);
        }
        list.norm("norm_out", d);
        list.linear("proj_to_clip_embeddings", d, e);
        list.add("clip_mean", &[1, e]);
        list.add("clip_std", &[1, e]);
        list.0
    }

    fn text_proj_config(&self) -> Value {
        json!({
            "_class_name": "UnCLIPTextProjModel", "_diffusers_version": VERSION, "clip_extra_context_tokens": 4,
            "clip_embeddings_dim": self.embed_dim, "time_embed_dim": 4 * self.decoder[0],
            "cross_attention_dim": self.context,
        })
    }

    fn text_proj(&self) -> Tensors {
        let (e, time) = (self.embed_dim, 4 * self.decoder[0]);
        let mut list = List::default();
        list.add("learned_classifier_free_guidance_embeddings", &[e]);
        list.linear("embedding_proj", e, time);
        list.linear("clip_image_embeddings_project_to_time_embeddings", e, time);
        list.linear("clip_extra_context_tokens_proj", e, 4 * self.context);
        list.linear("encoder_hidden_states_proj", e, self.context);
        list.norm("text_encoder_hidden_states_norm", self.context);
        list.0
    }

    fn decoder_config(&self) -> Value {
        let n = self.decoder.len();
        let blocks = |plain: &str, attending: &str| -> Vec<String> {
            let block = |i: usize| if i == 0 { plain } else { attending };
            (0..n).map(|i| block(i).to_owned()).collect()
        };
        let up: Vec<String> = blocks("ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D").into_iter().rev().collect();
        json!({
            "_class_name": "UNet2DConditionModel", "_diffusers_version": VERSION, "sample_size": self.decoder_size,
            "in_channels": 3, "out_channels": 6, "block_out_channels": self.decoder,
            "layers_per_block": self.layers_per_block, "cross_attention_dim": self.context,
            "attention_head_dim": self.head_dim, "class_embed_type": "identity", "norm_num_groups": self.groups[0],
            "resnet_time_scale_shift": "scale_shift", "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
            "down_block_types": blocks("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"), "up_block_types": up,
        })
    }

    fn decoder(&self) -> Tensors {
        UNet { channels: &self.decoder, image: [3, 6], context: Some(self.context), film: 2 }
            .tensors(self.layers_per_block)
    }

    fn super_res_config(&self) -> Value {
        let n = self.super_res.len();
        json!({
            "_class_name": "UNet2DModel", "_diffusers_version": VERSION, "sample_size": self.super_res_size,
            "in_channels": 6, "out_channels": 3, "block_out_channels": self.super_res,
            "layers_per_block": self.layers_per_block, "add_attention": false, "norm_num_groups": self.groups[1],
            "norm_eps": 1e-5, "resnet_time_scale_shift": "default",
            "down_block_types": vec!["ResnetDownsampleBlock2D"; n], "up_block_types": vec!["ResnetUpsampleBlock2D"; n],
        })
    }

    fn super_res(&self) -> Tensors {
        UNet { channels: &self.super_res, image: [6, 3], context: None, film: 1 }.tensors(self.layers_per_block)
    }
}

/// Writes a checkpoint in half precision, one tensor at a time, and the index last.
///
/// Before each part is written, `report` receives its folder and its number of parameters.
///
/// # Errors
/// When a file cannot be written.
pub fn write(dir: &Path, sizes: &Sizes, seed: u64, mut report: impl FnMut(&str, usize)) -> Result<()> {
    let mut index = serde_json::Map::new();
    index.insert("_class_name".into(), "UnCLIPPipeline".into());
    index.insert("_diffusers_version".into(), VERSION.into());
    for (number, Part { folder, class, config: (file, config), weights }) in sizes.parts().into_iter().enumerate() {
        if let Some((file, tensors)) = weights {
            report(folder, tensors.values().map(|shape| shape.iter().product::<usize>()).sum());
            let path = dir.join(folder).join(file);
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(number as u64);
            let mut writer = WeightsWriter::create(path, FloatType::F16, tensors.clone(), &BTreeMap::new())?;
            for (name, shape) in tensors {
                writer.write(&name, &values(&name, &shape, &mut rng))?;
            }
            writer.finish()?;
        }
        write_json(dir.join(folder).join(file), &config)?;
        index.insert(folder.into(), json!(class));
    }
    let class = ClipTokenizer::openai()?.save(dir.join("tokenizer"), 77, PAD_TOKEN)?;
    index.insert("tokenizer".into(), json!(["transformers", class]));
    write_json(dir.join("model_index.json"), &index)
}

/// Returns random values that leave activations near magnitude 1: norms near the identity, small biases, and matrices
/// and kernels with standard deviation 1 / sqrt(inputs).
fn values(name: &str, shape: &[usize], rng: &mut ChaCha8Rng) -> Vec<f32> {
    let numel: usize = shape.iter().product();
    let (mean, deviation) = if name.ends_with(".bias") || name == "clip_mean" {
        (0.0, 0.05)
    } else if (name.contains("norm") && name.ends_with(".weight")) || name == "clip_std" {
        (1.0, 0.05)
    } else {
        (0.0, ((numel / shape[0]) as f32).sqrt().recip())
    };
    // Uniform with that standard deviation.
    let scale = deviation * 3f32.sqrt() / 2f32.powi(31);
    (0..numel).map(|_| mean + scale * (rng.next_u32() as i32) as f32).collect()
}
