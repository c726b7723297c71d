//! CLIPs of others against what their own programs compute, see `fixtures/README.md` and `fixtures/clip/`.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::prelude::*;
use burn::tensor::Tolerance;
use dalle2_clip::{ClipConfig, ClipImageEncoder, ClipTextEncoder, ImageProcessor, ImportOptions, PretrainedClip};
use dalle2_core::nn::Activation;
use dalle2_core::store::{Weights, read_json, write_json};
use dalle2_core::{Error, FloatType, ImageEncoder};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A recorded array as f32 values, whatever its type.
fn read(file: &str, name: &str) -> TensorData {
    let bytes = std::fs::read(fixture(&format!("{file}.safetensors"))).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let view = tensors.tensor(name).unwrap();
    let values: Vec<f32> = match view.dtype() {
        Dtype::F32 => view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        Dtype::I64 => view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f32).collect(),
        Dtype::U8 => view.data().iter().map(|b| f32::from(*b)).collect(),
        other => panic!("{name}: {other:?}"),
    };
    TensorData::new(values, view.shape().to_vec())
}

/// A recorded 8-bit image `[H, W, 3]` as the library's tensors are.
fn image(file: &str, name: &str) -> Tensor<4> {
    let pixels = Tensor::<3>::from_data(read(file, name), &Device::flex());
    (pixels.permute([2, 0, 1]) / 127.5 - 1.0).unsqueeze::<4>()
}

fn load(name: &str) -> PretrainedClip {
    PretrainedClip::load(fixture(name), &ImportOptions::default(), &Device::flex()).unwrap()
}

fn close<const D: usize>(found: Tensor<D>, expected: &TensorData) {
    found.into_data().assert_approx_eq::<f32>(expected, Tolerance::rel_abs(1e-4, 1e-5));
}

/// Pixels to 1e-6, embeddings to 1e-5 absolute and 1e-4 relative.
fn computes_what_was_recorded(clip: &PretrainedClip, file: &str) {
    let pixels = clip.processor.as_ref().unwrap().forward(image(file, "image")).unwrap();
    pixels.to_data().assert_approx_eq::<f32>(&read(file, "pixels"), Tolerance::rel_abs(1e-6, 1e-6));
    close(clip.model.vision.forward(pixels), &read(file, "image_embeds"));

    let ids = read(file, "ids");
    let width = ids.shape()[1];
    let ids: Vec<u32> = ids.iter::<f32>().map(|id| id as u32).collect();
    // The largest id ends the text in all of these.
    let items: Vec<(Vec<u32>, usize)> = ids
        .chunks(width)
        .map(|row| (row.to_vec(), row.iter().position(|id| id == row.iter().max().unwrap()).unwrap() + 1))
        .collect();
    let batch = clip.config.text.batch(&items, &Device::flex()).unwrap();
    close(clip.model.text.forward(&batch).pooled, &read(file, "text_embeds"));
}

#[test]
fn a_clip_of_transformers_in_shards_computes_the_same() {
    let clip = load("clip/transformers");
    assert_eq!(clip.config.text.activation, Activation::Gelu);
    computes_what_was_recorded(&clip, "clip/transformers");
}

#[test]
fn a_directory_of_open_clip_computes_the_same() {
    let clip = load("clip/open_clip");
    assert_eq!((clip.config.vision.n_heads, clip.config.vision.d_ff), (3, Some(72)));
    computes_what_was_recorded(&clip, "clip/open_clip");
}

#[test]
fn an_archive_of_openai_tells_its_architecture_and_computes_the_same() {
    let clip = load("clip/openai.pt");
    assert_eq!(clip.config.vision.activation, Activation::QuickGelu);
    assert_eq!((clip.config.vision.n_heads, clip.config.text.n_heads), (2, 2));
    computes_what_was_recorded(&clip, "clip/openai");
}

#[test]
fn a_state_dict_alone_needs_to_be_told_what_its_shapes_do_not_say() {
    let file = fixture("clip/open_clip/open_clip_pytorch_model.bin");
    let load = |options: &ImportOptions| PretrainedClip::load(&file, options, &Device::flex());
    let error = load(&ImportOptions::default()).unwrap_err().to_string();
    assert!(error.contains("QuickGELU") && error.contains("open_clip_pytorch_model.bin"), "{error}");
    let architecture = load_config("clip/open_clip");
    let clip = load(&ImportOptions { architecture: Some(architecture), activation: Some(Activation::Gelu) }).unwrap();
    computes_what_was_recorded(&clip, "clip/open_clip");
    // Another architecture: every tensor that does not fit is listed.
    let error = load(&ImportOptions { architecture: Some(ClipConfig::tiny()), activation: None }).unwrap_err();
    let Error::Weights { mismatched, missing, .. } = error else { panic!("{error}") };
    assert!(mismatched.len() > 10 && missing.iter().any(|name| name.contains("layers.2")), "{missing:?}");
}

fn load_config(name: &str) -> ClipConfig {
    load(name).config
}

#[test]
fn a_clip_of_any_form_is_written_in_the_form_of_transformers() {
    let dir = tempfile::tempdir().unwrap();
    for (name, file) in [("clip/openai.pt", "clip/openai"), ("clip/transformers", "clip/transformers")] {
        load(name).save(dir.path(), FloatType::F32).unwrap();
        let again = PretrainedClip::load(dir.path(), &ImportOptions::default(), &Device::flex()).unwrap();
        computes_what_was_recorded_but_for_the_cut(&again, file);
    }
    // The last one was read from this form: same JSON, same tensors.
    for json in ["config.json", "preprocessor_config.json"] {
        let read = |dir: &Path| read_json::<Value>(dir.join(json)).unwrap();
        assert_eq!(read(dir.path()), read(&fixture("clip/transformers")), "{json}");
    }
    let shards = Weights::open(fixture("clip/transformers/model.safetensors.index.json")).unwrap();
    let whole = Weights::open(dir.path().join("model.safetensors")).unwrap();
    assert!(shards.names().eq(whole.names()));
    for name in shards.names() {
        assert_eq!(shards.read(name).unwrap(), whole.read(name).unwrap(), "{name}");
    }
}

/// transformers and torchvision cut the centre of an odd margin one pixel apart, so only the embeddings of recorded
/// pixels are the same in both.
fn computes_what_was_recorded_but_for_the_cut(clip: &PretrainedClip, file: &str) {
    let pixels = Tensor::<4>::from_data(read(file, "pixels"), &Device::flex());
    close(clip.model.vision.forward(pixels), &read(file, "image_embeds"));
}

#[test]
fn presets_are_found_by_name() {
    assert_eq!(ClipConfig::preset("vit_l_14_336").unwrap().vision.image_size, 336);
    let error = ClipConfig::preset("vit_z").unwrap_err().to_string();
    assert!(error.contains("vit_big_g_14") && error.contains("emoji"), "{error}");
}

/// A directory of the reference implementation with one tower.
fn tower(part: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (from, to) in [("_model.safetensors", "model.safetensors"), ("_config.json", "config.json")] {
        std::fs::copy(fixture(&format!("{part}{from}")), dir.path().join(to)).unwrap();
    }
    dir
}

fn bytes(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())).collect()
}

#[test]
fn towers_are_written_as_they_were_read() {
    let device = Device::flex();
    let text = tower("text_encoder");
    let out = tempfile::tempdir().unwrap();
    let unchanged = |dir: &Path| {
        assert_eq!(bytes(&out.path().join("model.safetensors")), bytes(&dir.join("model.safetensors")));
        let json = |dir: &Path| read_json::<Value>(dir.join("config.json")).unwrap();
        assert_eq!(json(out.path()), json(dir));
    };
    ClipTextEncoder::load(text.path(), &device).unwrap().save_pretrained(out.path(), FloatType::F32).unwrap();
    unchanged(text.path());
    let image = tower("image_encoder");
    ClipImageEncoder::load(image.path(), &device).unwrap().save_pretrained(out.path(), FloatType::F32).unwrap();
    unchanged(image.path());
    // One that was never on disk has the same fields.
    let own = ClipImageEncoder::load(image.path(), &device).unwrap();
    let own = ClipImageEncoder::new(own.config().clone(), own.model()).unwrap();
    own.save_pretrained(out.path(), FloatType::F16).unwrap();
    let mut expected: Value = read_json(image.path().join("config.json")).unwrap();
    expected["dtype"] = "float16".into();
    expected.as_object_mut().unwrap().remove("transformers_version");
    assert_eq!(read_json::<Value>(out.path().join("config.json")).unwrap(), expected);
}

/// Pillow's bicubic resizing to the last bit, then the tower: from an 8-bit image to the recorded embedding.
#[test]
fn images_are_prepared_to_the_last_bit() {
    let dir = tower("image_encoder");
    let encoder = ClipImageEncoder::load(dir.path(), &Device::flex()).unwrap();
    let name = "preprocessor_config.json";
    std::fs::copy(fixture(name), dir.path().join(name)).unwrap();
    let processor = ImageProcessor::load(dir.path()).unwrap();
    let pixels = processor.forward(image("feature_extractor", "image_hwc_u8")).unwrap();
    let expected = read("feature_extractor", "pixel_values");
    pixels.into_data().assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(1e-6, 1e-6));
    let encoder = encoder.with_processor(processor.clone()).unwrap();
    assert_eq!(encoder.encode(image("feature_extractor", "image_hwc_u8")).unwrap().dims(), [1, 32]);
    let mut other = processor;
    other.crop_size = dalle2_clip::ImageSize::Number(16);
    assert!(encoder.with_processor(other).unwrap_err().to_string().contains("[24, 24]"));
}

#[test]
fn configurations_that_cannot_be_read_name_the_field_and_the_file() {
    let device = Device::flex();
    let dir = tower("text_encoder");
    let path = dir.path().join("config.json");
    let original: Value = read_json(&path).unwrap();
    for (key, value, expected) in [
        ("hidden_act", json!("relu"), "quick_gelu"),
        ("architectures", json!(["T5EncoderModel"]), "CLIPTextModelWithProjection"),
        ("hidden_size", json!("big"), "hidden_size"),
        ("num_attention_heads", json!(5), "n_heads"),
        ("num_hidden_layers", json!(4_000_000_000u32), "num_hidden_layers"),
        ("vocab_size", json!(u32::MAX), "vocab_size"),
        ("layer_norm_eps", json!(-1.0), "layer_norm_eps"),
        ("intermediate_size", json!(44), "layers.0.mlp.fc1.weight"),
    ] {
        let mut changed = original.clone();
        changed[key] = value;
        write_json(&path, &changed).unwrap();
        let error = ClipTextEncoder::load(dir.path(), &device).unwrap_err().to_string();
        let location = if key == "intermediate_size" { "model.safetensors" } else { "config.json" };
        assert!(error.contains(expected) && error.contains(location), "{key}: {error}");
    }
    write_json(&path, &original).unwrap();
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let error = ClipTextEncoder::load(dir.path(), &device).unwrap_err().to_string();
    assert!(error.contains("pytorch_model.bin"), "{error}");
}
