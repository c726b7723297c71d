//! Pipelines in the layout of diffusers: read, written, and refused when something is wrong with them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod shared;
mod support;

use std::path::Path;

use burn::module::Module;
use burn::tensor::{Distribution, Tensor};
use dalle2::base::diffusion::SeededNoise;
use dalle2::base::{Component, EmbeddingScale, Upsampler};
use dalle2::clip::{ClipConfig, ClipImageEncoder, ClipTextEncoder};
use dalle2::decoder::{DecoderConfig, DiffusionUpsampler, UnclipDecoder, UpsamplerConfig};
use dalle2::prior::{DiffusionPrior, DiffusionPriorConfig};
use dalle2::{
    Device, FloatType, GenerateRequest, Generation, LoadOptions, Pipeline, Residency, RgbImage, Stage, UpsamplerOptions,
};
use safetensors::Dtype;
use serde_json::Value;
use shared::{files, fixture, image_variation, tensors, text_to_image, write_tensors};
use support::{Randomise, Redraw};

const CHECKPOINTS: [&str; 2] = ["tiny-unclip", "tall-unclip"];

fn load(dir: &Path) -> Pipeline {
    Pipeline::from_pretrained(dir, &Device::flex()).unwrap()
}

fn request() -> GenerateRequest {
    GenerateRequest::new("a red apple").seed(3).prior_steps(3).decoder_steps(3).upsampler_steps(2)
}

fn photo() -> RgbImage {
    RgbImage::from_fn(40, 30, |x, y| image::Rgb([(x * 6) as u8, (y * 8) as u8, (x * y % 251) as u8]))
}

fn variation() -> GenerateRequest {
    GenerateRequest::variation_of(photo()).seed(3).decoder_steps(3).upsampler_steps(2)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn embeddings(generation: &Generation) -> Tensor<2> {
    generation.embeddings.clone().unwrap()
}

fn assert_same(a: &Generation, b: &Generation) {
    assert_eq!(a.images, b.images);
    embeddings(a).into_data().assert_eq(&embeddings(b).into_data(), true);
}

/// Tensors byte for byte, JSON by value, everything else as it is.
fn assert_same_directory(saved: &Path, original: &Path) {
    let (saved, original) = (files(saved), files(original));
    assert_eq!(saved.keys().collect::<Vec<_>>(), original.keys().collect::<Vec<_>>());
    for (name, path) in &original {
        let found = &saved[name];
        match path.extension().unwrap().to_str().unwrap() {
            "safetensors" => {
                let (found, expected) = (tensors(found), tensors(path));
                assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}");
                assert!(found == expected, "{name}: a tensor differs");
            }
            "json" => assert_eq!(json(found), json(path), "{name}"),
            _ => assert_eq!(std::fs::read(found).unwrap(), std::fs::read(path).unwrap(), "{name}"),
        }
    }
}

#[test]
fn a_saved_directory_has_the_tensors_and_settings_of_the_one_that_was_read() {
    for name in CHECKPOINTS {
        for original in [text_to_image(name), image_variation(name)] {
            let saved = tempfile::tempdir().unwrap();
            load(original.path()).save_pretrained(saved.path()).unwrap();
            assert_same_directory(saved.path(), original.path());
        }
    }
}

#[test]
fn a_reloaded_pipeline_draws_the_same_to_the_last_bit() {
    let saved = tempfile::tempdir().unwrap();
    let original = text_to_image("tall-unclip");
    let pipeline = load(original.path());
    pipeline.save_pretrained(saved.path()).unwrap();
    let (before, after) = (pipeline.generate(request()).unwrap(), load(saved.path()).generate(request()).unwrap());
    assert_same(&before, &after);
    assert_eq!(before.images[0].dimensions(), (24, 24));
}

#[test]
fn half_precision_files_stay_as_they_are() {
    for (precision, dtype) in [(FloatType::F16, Dtype::F16), (FloatType::Bf16, Dtype::BF16)] {
        let original = text_to_image("tall-unclip");
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        load(original.path()).save_pretrained_as(first.path(), precision).unwrap();
        load(first.path()).save_pretrained_as(second.path(), precision).unwrap();
        assert_same_directory(second.path(), first.path());
        let prior = tensors(&first.path().join("prior/diffusion_pytorch_model.safetensors"));
        assert!(prior.values().all(|(found, ..)| *found == dtype));
        assert!(load(first.path()).generate(request()).is_ok());
    }
}

#[test]
fn variants_shards_and_pytorch_files_are_read() {
    let original = text_to_image("tall-unclip");
    let expected = load(original.path()).generate(request()).unwrap();

    let dir = text_to_image("tall-unclip");
    let weights = dir.path().join("decoder/diffusion_pytorch_model.safetensors");
    let all = tensors(&weights);
    std::fs::remove_file(&weights).unwrap();
    let mut map = serde_json::Map::new();
    for (i, half) in [true, false].into_iter().enumerate() {
        let shard = format!("diffusion_pytorch_model-0000{}-of-00002.safetensors", i + 1);
        let part = all.iter().filter(|(name, _)| name.starts_with("up_blocks") == half);
        let part: std::collections::BTreeMap<_, _> = part.map(|(name, raw)| (name.clone(), raw.clone())).collect();
        map.extend(part.keys().map(|name| (name.clone(), Value::from(shard.as_str()))));
        write_tensors(&dir.path().join("decoder").join(shard), &part);
    }
    let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
    std::fs::write(weights.with_extension("safetensors.index.json"), index.to_string()).unwrap();

    let text_proj = dir.path().join("text_proj");
    std::fs::remove_file(text_proj.join("diffusion_pytorch_model.safetensors")).unwrap();
    let pickle = "diffusion_pytorch_model.bin";
    std::fs::copy(fixture("tall-unclip/variants").join(pickle), text_proj.join(pickle)).unwrap();

    let prior = dir.path().join("prior/diffusion_pytorch_model.safetensors");
    std::fs::rename(&prior, prior.with_extension("fp16.safetensors")).unwrap();
    assert_same(&load(dir.path()).generate(request()).unwrap(), &expected);

    std::fs::remove_file(dir.path().join("decoder/diffusion_pytorch_model-00002-of-00002.safetensors")).unwrap();
    let error = Pipeline::from_pretrained(dir.path(), &Device::flex()).unwrap_err().to_string();
    assert!(error.contains("index.json") && error.contains("00002-of-00002"), "{error}");
}

#[test]
fn one_stage_at_a_time_gives_the_same_images() {
    for dir in [text_to_image("tiny-unclip"), image_variation("tiny-unclip")] {
        let resident = load(dir.path());
        let options = LoadOptions::new(&Device::flex()).residency(Residency::OneStage);
        let staged = Pipeline::from_pretrained_with(dir.path(), &options).unwrap();
        let request = if resident.prior().is_some() { request() } else { variation() };
        assert_same(&staged.generate(request.clone()).unwrap(), &resident.generate(request).unwrap());
        let saved = tempfile::tempdir().unwrap();
        staged.save_pretrained(saved.path()).unwrap();
        assert_same_directory(saved.path(), dir.path());
    }
}

#[test]
fn a_stage_on_disk_is_checked_when_the_pipeline_is_opened() {
    let dir = text_to_image("tiny-unclip");
    let path = dir.path().join("super_res_last/diffusion_pytorch_model.safetensors");
    let mut changed = tensors(&path);
    changed.remove("conv_out.bias").unwrap();
    write_tensors(&path, &changed);
    for residency in [Residency::Resident, Residency::OneStage] {
        let options = LoadOptions::new(&Device::flex()).residency(residency);
        let error = Pipeline::from_pretrained_with(dir.path(), &options).unwrap_err().to_string();
        assert!(error.contains("super_res_last") && error.contains("conv_out.bias"), "{residency:?}: {error}");
    }
}

#[test]
fn half_precision_networks_draw_nearly_the_same() {
    let dir = text_to_image("tiny-unclip");
    let exact = load(dir.path()).generate(request()).unwrap();
    for (compute_type, bound) in [(FloatType::F16, 0.02), (FloatType::Bf16, 0.15)] {
        let options = LoadOptions::new(&Device::flex()).compute_type(compute_type);
        let half = Pipeline::from_pretrained_with(dir.path(), &options).unwrap().generate(request()).unwrap();
        let error = (embeddings(&half) - embeddings(&exact)).abs().max().into_scalar::<f32>();
        let size = embeddings(&exact).abs().max().into_scalar::<f32>();
        assert!(error > 0.0 && error < bound * size, "{compute_type:?}: {error} of {size}");
    }
}

#[test]
fn images_and_embeddings_take_the_place_of_the_prior() {
    let dir = image_variation("tiny-unclip");
    let pipeline = load(dir.path());
    let generation = pipeline.generate(variation().num_images(2)).unwrap();
    assert_eq!((generation.images.len(), generation.times[1].stage), (2, Stage::ImageEncoder));
    assert_ne!(generation.images[0], generation.images[1]);

    let again = variation().embeddings(embeddings(&generation).narrow(0, 0, 1));
    assert_eq!(pipeline.generate(again).unwrap().images[0], generation.images[0]);

    let caption = pipeline.generate("a red apple").unwrap_err().to_string();
    assert!(caption.contains("no prior") && caption.contains("variation_of"), "{caption}");
    let text = text_to_image("tiny-unclip");
    let image = load(text.path()).generate(variation()).unwrap_err().to_string();
    assert!(image.contains("need an image encoder"), "{image}");
    let short = variation().embeddings(Tensor::zeros([1, 3], &Device::flex()));
    let short = pipeline.generate(short).unwrap_err().to_string();
    assert!(short.contains("width 3") && short.contains("32"), "{short}");
}

#[test]
fn the_index_of_newer_releases_is_read_and_kept() {
    for library in ["diffusers", "diffusers.pipelines.deprecated.unclip"] {
        let dir = text_to_image("tiny-unclip");
        let path = dir.path().join("model_index.json");
        let mut index = json(&path);
        index["text_proj"] = serde_json::json!([library, "UnCLIPTextProjModel"]);
        index["_name_or_path"] = "somewhere".into();
        std::fs::write(&path, index.to_string()).unwrap();
        let saved = tempfile::tempdir().unwrap();
        load(dir.path()).save_pretrained(saved.path()).unwrap();
        assert_eq!(json(&saved.path().join("model_index.json")), index);
    }
}

/// A pipeline of the portable presets, with random weights everywhere.
fn portable(device: &Device) -> Pipeline {
    let clip = ClipConfig::portable();
    let model = clip.init(device).map(&mut Redraw::new(4));
    let scale = EmbeddingScale::MeanStd { mean: vec![0.1; 64], std: vec![0.7; 64] };
    let prior = DiffusionPriorConfig::portable(64, 32, scale);
    let mut decoder = DecoderConfig::portable(64);
    decoder.image_size = 16;
    let mut upsampler = UpsamplerConfig::portable();
    upsampler.input_size = 16;
    Pipeline::builder()
        .text_encoder(ClipTextEncoder::new(clip.text.clone(), &model.text).unwrap())
        .image_encoder(ClipImageEncoder::new(clip.vision.clone(), &model.vision).unwrap())
        .prior(DiffusionPrior::new(prior.clone(), prior.init(device).map(&mut Randomise::new(1))).unwrap())
        .decoder(UnclipDecoder::new(decoder.clone(), decoder.init(device).map(&mut Randomise::new(2))).unwrap())
        .upsampler(
            DiffusionUpsampler::new(upsampler.clone(), upsampler.init(device).map(&mut Randomise::new(3))).unwrap(),
        )
        .device(device)
        .build()
        .unwrap()
}

#[test]
fn a_portable_pipeline_is_written_in_full_and_draws_the_same_when_it_is_read() {
    let pipeline = portable(&Device::flex());
    assert_eq!(pipeline.diffusers_faults(), Vec::<String>::new());
    let dir = tempfile::tempdir().unwrap();
    pipeline.save_pretrained(dir.path()).unwrap();
    let loaded = load(dir.path());
    assert_same(&loaded.generate(request()).unwrap(), &pipeline.generate(request()).unwrap());
    // Guidance and steps that are not the reference's survive.
    assert_eq!(loaded.decoder().defaults(), pipeline.decoder().defaults());
    assert_eq!(loaded.upsamplers().next().unwrap().defaults(), pipeline.upsamplers().next().unwrap().defaults());

    // Every setting that diffusers writes is there.
    let reference = image_variation("tiny-unclip");
    for from in [&fixture("tiny-unclip/pipeline"), reference.path()] {
        for (name, path) in files(from) {
            if name.ends_with("config.json") && !name.starts_with("tokenizer") {
                let (found, expected) = (json(&dir.path().join(&name)), json(&path));
                let missing: Vec<_> = expected
                    .as_object()
                    .unwrap()
                    .keys()
                    .filter(|key| *key != "transformers_version" && found.get(key.as_str()).is_none())
                    .collect();
                assert!(missing.is_empty(), "{name} lacks {missing:?}");
            }
        }
    }
    let index = json(&dir.path().join("model_index.json"));
    assert_eq!(index["_class_name"], "UnCLIPPipeline");
    assert_eq!(index["text_proj"], serde_json::json!(["unclip", "UnCLIPTextProjModel"]));
    let expected = dalle2::base::text::ClipTokenizer::openai().unwrap();
    let tokenizer = dalle2::base::text::ClipTokenizer::from_dir(dir.path().join("tokenizer")).unwrap();
    assert_eq!(tokenizer.encode("It’s a red apple 🍎").unwrap(), expected.encode("It’s a red apple 🍎").unwrap());
    assert_eq!((tokenizer.pad_token(), tokenizer.max_length()), (49_407, Some(32)));
}

#[test]
fn what_the_layout_cannot_express_is_listed_and_written_under_own_names() {
    let device = Device::flex();
    let portable = portable(&device);
    let mut decoder = DecoderConfig::tiny(64, 64);
    decoder.image_size = 16;
    let (text, prior) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    portable.text_encoder().save(text.path(), FloatType::F32).unwrap();
    portable.prior().unwrap().save(prior.path(), FloatType::F32).unwrap();
    let pipeline = Pipeline::builder()
        .text_encoder(ClipTextEncoder::load(text.path(), &device).unwrap())
        .prior(DiffusionPrior::load(prior.path(), &device).unwrap())
        .decoder(UnclipDecoder::new(decoder.clone(), decoder.init(&device)).unwrap())
        .device(&device)
        .build()
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let error = pipeline.save_diffusers(dir.path(), FloatType::F32).unwrap_err().to_string();
    for part in ["decoder: `unet.patch` = 2", "`prediction` = V", "pooled_text", "embedding_scale", "super-resolution"]
    {
        assert!(error.contains(part), "{error} does not name {part}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    pipeline.save_pretrained(dir.path()).unwrap();
    assert_eq!(json(&dir.path().join("model_index.json"))["_class_name"], "Dalle2Pipeline");
    assert!(Pipeline::from_pretrained(dir.path(), &device).is_ok());
}

#[test]
fn a_network_for_the_last_step_survives_in_both_forms() {
    let (device, dir) = (Device::flex(), tempfile::tempdir().unwrap());
    let original =
        DiffusionUpsampler::load_diffusers(fixture("tall-unclip/pipeline"), &LoadOptions::new(&device)).unwrap();
    original.save(dir.path(), FloatType::F32).unwrap();
    let own = DiffusionUpsampler::load(dir.path(), &device).unwrap();
    assert_eq!(own.config(), original.config());
    let low = Tensor::<4>::random([1, 3, 8, 8], Distribution::Uniform(-1.0, 1.0), &device);
    let draw = |upsampler: &DiffusionUpsampler| {
        let mut noise = SeededNoise::new(&[5], 0);
        let options = UpsamplerOptions { steps: Some(3), ..Default::default() };
        upsampler.sample(&low, None, &options, &mut noise, &mut |_| Ok(())).unwrap().into_data()
    };
    draw(&own).assert_eq(&draw(&original), true);
    std::fs::remove_file(dir.path().join("last_step.safetensors")).unwrap();
    let error = DiffusionUpsampler::load(dir.path(), &device).unwrap_err().to_string();
    assert!(error.contains("last_step.safetensors"), "{error}");
}

/// Replaces text in a file of a checkpoint, or removes the file, and expects an error with these parts.
fn refused(folder: &str, file: &str, change: Option<(&str, &str)>, expected: &[&str]) {
    let dir = text_to_image("tiny-unclip");
    let path = dir.path().join(folder).join(file);
    match change {
        None => std::fs::remove_file(&path).unwrap(),
        Some((from, to)) => {
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.contains(from), "{folder}/{file} has no {from}");
            std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
        }
    }
    let error = Pipeline::from_pretrained(dir.path(), &Device::flex()).unwrap_err().to_string();
    for part in expected {
        assert!(error.contains(part), "{folder}/{file} {change:?}: {error:?} does not name {part}");
    }
}

#[test]
fn every_wrong_setting_names_its_file_and_key() {
    const CONFIG: &str = "config.json";
    const SCHEDULER: &str = "scheduler_config.json";
    for (folder, file, from, to, expected) in [
        ("", "model_index.json", "\"UnCLIPPipeline\"", "\"IFPipeline\"", &["model_index", "IFPipeline"][..]),
        ("", "model_index.json", "UNet2DConditionModel", "UNet3D", &["model_index", "`decoder`", "UNet3D"]),
        (
            "",
            "model_index.json",
            "\"prior_scheduler\"",
            "\"pryor_scheduler\"",
            &["pryor_scheduler", "`prior_scheduler`"],
        ),
        ("", "model_index.json", "UnCLIPScheduler", "DDIMScheduler", &["model_index", "DDIMScheduler"]),
        ("", "model_index.json", "[\n    \"unclip\",", "[7,", &["model_index", "`text_proj`"]),
        ("decoder", CONFIG, "\"UNet2DConditionModel\"", "\"UNet2DModel\"", &["decoder/config.json", "`_class_name`"]),
        (
            "decoder",
            CONFIG,
            "SimpleCrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            &["`down_block_types`", "SimpleCross"],
        ),
        ("decoder", CONFIG, "ResnetUpsampleBlock2D", "UpBlock2D", &["decoder/config.json", "`up_block_types`"]),
        ("decoder", CONFIG, "UNetMidBlock2DSimpleCrossAttn", "UNetMidBlock2D", &["`mid_block_type`", "SimpleCross"]),
        ("decoder", CONFIG, "\"silu\"", "\"mish\"", &["decoder/config.json", "`act_fn`", "mish"]),
        ("decoder", CONFIG, "\"layers_per_block\": 1", "\"layers_per_block\": \"1\"", &["`layers_per_block`"]),
        ("decoder", CONFIG, "\"layers_per_block\": 1", "\"layers_per_block\": [1, 2, 3]", &["`layers_per_block`", "3"]),
        (
            "decoder",
            CONFIG,
            "\"layers_per_block\": 1",
            "\"layers_per_block\": 0",
            &["`layers_per_block`", "at least 1"],
        ),
        ("decoder", CONFIG, "\"sample_size\": 16", "\"sample_size\": -16", &["decoder/config.json", "`sample_size`"]),
        ("decoder", CONFIG, "\"sample_size\": 16", "\"sample_size\": 15", &["decoder/config.json", "15"]),
        (
            "decoder",
            CONFIG,
            "\"attention_head_dim\": 8",
            "\"attention_head_dim\": 5",
            &["decoder/config.json", "head_dim"],
        ),
        ("decoder", CONFIG, "\"norm_num_groups\": 8", "\"norm_num_groups\": null", &["`norm_num_groups`"]),
        (
            "decoder",
            CONFIG,
            "\"only_cross_attention\": false",
            "\"only_cross_attention\": true",
            &["`only_cross_attention`"],
        ),
        ("decoder", CONFIG, "\"scale_shift\"", "\"ada_group\"", &["`resnet_time_scale_shift`", "ada_group"]),
        (
            "decoder",
            CONFIG,
            "\"class_embed_type\": \"identity\"",
            "\"class_embed_type\": null",
            &["`class_embed_type`"],
        ),
        ("decoder", CONFIG, "\"encoder_hid_dim\": null", "\"encoder_hid_dim\": 7", &["`encoder_hid_dim`", "7"]),
        ("decoder", CONFIG, "\"out_channels\": 6", "\"out_channels\": 3", &["decoder/config.json", "out_channels"]),
        (
            "text_proj",
            CONFIG,
            "\"time_embed_dim\": 64",
            "\"time_embed_dim\": 65",
            &["text_proj", "`time_embed_dim`", "64"],
        ),
        ("text_proj", CONFIG, "\"clip_embeddings_dim\": 32", "\"clip_embeddings_dim\": {}", &["`clip_embeddings_dim`"]),
        (
            "prior",
            CONFIG,
            "\"added_emb_type\": \"prd\"",
            "\"added_emb_type\": null",
            &["prior/config.json", "`added_emb_type`"],
        ),
        ("prior", CONFIG, "\"num_attention_heads\": 2", "\"num_attention_heads\": 0", &["prior/config.json"]),
        (
            "prior",
            CONFIG,
            "\"time_embed_act_fn\": \"silu\"",
            "\"time_embed_act_fn\": \"gelu\"",
            &["`time_embed_act_fn`"],
        ),
        ("prior", CONFIG, "\"num_embeddings\": 77", "\"num_embeddings\": 76", &["prior", "positional_embedding"]),
        ("prior_scheduler", SCHEDULER, "UnCLIPScheduler", "DDPMScheduler", &["`_class_name`", "UnCLIPScheduler"]),
        ("prior_scheduler", SCHEDULER, "\"sample\"", "\"v_prediction\"", &["prior_scheduler", "`prediction_type`"]),
        ("prior_scheduler", SCHEDULER, "squaredcos_cap_v2", "linear", &["prior_scheduler", "`beta_schedule`"]),
        ("prior_scheduler", SCHEDULER, "fixed_small_log", "learned_range", &["prior_scheduler", "variance_type"]),
        ("decoder_scheduler", SCHEDULER, "\"learned_range\"", "\"learned\"", &["`variance_type`", "learned_range"]),
        ("decoder_scheduler", SCHEDULER, "1000", "0", &["decoder_scheduler", "`num_train_timesteps`"]),
        (
            "super_res_scheduler",
            SCHEDULER,
            "\"clip_sample_range\": 1.0",
            "\"clip_sample_range\": -1.0",
            &["`clip_sample_range`"],
        ),
        (
            "super_res_first",
            CONFIG,
            "\"sample_size\": 32",
            "\"sample_size\": 33",
            &["super_res_first", "`sample_size`"],
        ),
        ("super_res_last", CONFIG, "\"sample_size\": 32", "\"sample_size\": 64", &["super_res_last", "`sample_size`"]),
        ("super_res_first", CONFIG, "\"add_attention\": false", "\"add_attention\": 1", &["`add_attention`"]),
        ("super_res_first", CONFIG, "\"freq_shift\": 0", "\"freq_shift\": 1", &["super_res_first", "`freq_shift`"]),
        ("text_encoder", CONFIG, "\"quick_gelu\"", "\"relu\"", &["text_encoder", "relu"]),
        (
            "tokenizer",
            "tokenizer_config.json",
            "\"model_max_length\": 77",
            "\"model_max_length\": 40",
            &["tokenizer", "40"],
        ),
        (
            "tokenizer",
            "tokenizer_config.json",
            "\"pad_token\": \"<|endoftext|>\"",
            "\"pad_token\": \"<pad>\"",
            &["tokenizer_config.json", "`pad_token`", "<pad>"],
        ),
        ("tokenizer", "vocab.json", "\"!\": 0", "\"!\": \"zero\"", &["vocab.json"]),
        ("decoder", CONFIG, "{", "[", &["decoder/config.json"]),
    ] {
        refused(folder, file, Some((from, to)), expected);
    }
}

#[test]
fn every_missing_file_is_named() {
    for (folder, file, expected) in [
        ("decoder", "config.json", "decoder/config.json"),
        ("decoder", "diffusion_pytorch_model.safetensors", "decoder"),
        ("text_proj", "diffusion_pytorch_model.safetensors", "text_proj"),
        ("prior_scheduler", "scheduler_config.json", "prior_scheduler/scheduler_config.json"),
        ("super_res_last", "config.json", "super_res_last/config.json"),
        ("text_encoder", "model.safetensors", "text_encoder"),
        ("tokenizer", "merges.txt", "merges.txt"),
    ] {
        refused(folder, file, None, &[expected]);
    }
    let dir = text_to_image("tiny-unclip");
    std::fs::remove_dir_all(dir.path().join("tokenizer")).unwrap();
    let error = Pipeline::from_pretrained(dir.path(), &Device::flex()).unwrap_err().to_string();
    assert!(error.contains("tokenizer") && error.contains("vocab.json"), "{error}");
}

#[test]
fn every_wrong_tensor_is_named() {
    let dir = text_to_image("tiny-unclip");
    let path = dir.path().join("prior/diffusion_pytorch_model.safetensors");
    let original = tensors(&path);
    let mut changed = original.clone();
    let query = changed.remove("prd_embedding").unwrap();
    changed.insert("prd_embeddings".into(), query);
    changed.get_mut("proj_in.bias").unwrap().1 = vec![12, 2];
    let std = changed.get_mut("clip_std").unwrap();
    std.1 = vec![32];
    write_tensors(&path, &changed);
    let error = Pipeline::from_pretrained(dir.path(), &Device::flex()).unwrap_err().to_string();
    for part in
        ["prior/", "missing (1): prd_embedding", "prd_embeddings", "proj_in.bias", "[12, 2]", "clip_std", "[1, 32]"]
    {
        assert!(error.contains(part), "{error:?} does not name {part}");
    }

    let bytes = std::fs::read(fixture("tiny-unclip/pipeline/prior/diffusion_pytorch_model.safetensors")).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
    let error = Pipeline::from_pretrained(dir.path(), &Device::flex()).unwrap_err().to_string();
    assert!(error.contains("prior/diffusion_pytorch_model.safetensors"), "{error}");

    let mut infinite = original;
    infinite.get_mut("norm_out.bias").unwrap().2[..4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    write_tensors(&path, &infinite);
    let error = Pipeline::from_pretrained(dir.path(), &Device::flex()).unwrap_err().to_string();
    assert!(error.contains("norm_out.bias") && error.contains("finite"), "{error}");
}
