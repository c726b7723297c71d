//! The towers against the reference implementation, see `fixtures/README.md`.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use burn::prelude::*;
use burn::tensor::Tolerance;
use dalle2_clip::{ClipImageEncoder, ClipTextEncoder, preprocess};
use dalle2_core::Component;
use dalle2_core::FloatType;
use safetensors::{Dtype, SafeTensors};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(format!("{name}.safetensors"))
}

/// A recorded array as f64 values, whatever its type, and its shape.
fn read(file: &str, name: &str) -> (Vec<f64>, Vec<usize>) {
    let bytes = std::fs::read(fixture(file)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let view = tensors.tensor(name).unwrap();
    let values = match view.dtype() {
        Dtype::F32 => view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect(),
        Dtype::I64 => view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64).collect(),
        Dtype::U8 => view.data().iter().map(|b| f64::from(*b)).collect(),
        other => panic!("{name}: {other:?}"),
    };
    (values, view.shape().to_vec())
}

fn data(file: &str, name: &str) -> TensorData {
    let (values, shape) = read(file, name);
    TensorData::new(values.into_iter().map(|v| v as f32).collect(), shape)
}

fn tolerance() -> Tolerance<f32> {
    Tolerance::rel_abs(1e-4, 1e-5)
}

/// A directory of the reference implementation with one tower.
fn tower(part: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    for (from, to) in [("_model.safetensors", "model.safetensors"), ("_config.json", "config.json")] {
        std::fs::copy(fixtures.join(format!("{part}{from}")), dir.path().join(to)).unwrap();
    }
    dir
}

fn text_encoder() -> ClipTextEncoder {
    ClipTextEncoder::load(tower("text_encoder").path(), &Device::flex()).unwrap()
}

fn image_encoder() -> ClipImageEncoder {
    ClipImageEncoder::load(tower("image_encoder").path(), &Device::flex()).unwrap()
}

#[test]
fn text_tower_equals_the_reference() {
    let device = Device::flex();
    let encoder = text_encoder();
    let (ids, shape) = read("text_encoder", "input_ids");
    let (mask, _) = read("text_encoder", "attention_mask");
    let items: Vec<(Vec<u32>, usize)> = ids
        .chunks(shape[1])
        .zip(mask.chunks(shape[1]))
        .map(|(ids, mask)| (ids.iter().map(|id| *id as u32).collect(), mask.iter().sum::<f64>() as usize))
        .collect();
    let output = encoder.model().forward(&encoder.config().batch(&items, &device).unwrap());
    output.tokens.into_data().assert_approx_eq(&data("text_encoder", "last_hidden_state"), tolerance());
    output.pooled.into_data().assert_approx_eq(&data("text_encoder", "text_embeds"), tolerance());
}

#[test]
fn vision_tower_equals_the_reference() {
    let device = Device::flex();
    let encoder = image_encoder();
    let model = encoder.model();
    let pixels = Tensor::<4>::from_data(data("image_encoder", "pixel_values"), &device);
    let encodings = model.encode_patches(pixels.clone());
    encodings.into_data().assert_approx_eq(&data("image_encoder", "last_hidden_state"), tolerance());
    model.forward(pixels).into_data().assert_approx_eq(&data("image_encoder", "image_embeds"), tolerance());
}

#[test]
fn saved_files_hold_the_tensors_of_the_reference() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    text_encoder().save(dir.path(), FloatType::F32).unwrap();
    let (written, reference) = (std::fs::read(&path).unwrap(), std::fs::read(fixture("text_encoder_model")).unwrap());
    let (written, reference) =
        (SafeTensors::deserialize(&written).unwrap(), SafeTensors::deserialize(&reference).unwrap());
    assert_eq!(written.len(), reference.len());
    for (name, view) in reference.tensors() {
        let tensor = written.tensor(&name).unwrap();
        assert_eq!((tensor.shape(), tensor.data()), (view.shape(), view.data()), "{name}");
    }
}

#[test]
fn preprocessing_equals_the_reference() {
    let device = Device::flex();
    let (values, shape) = read("feature_extractor", "image_hwc_u8");
    let values: Vec<f32> = values.into_iter().map(|v| (v / 127.5 - 1.0) as f32).collect();
    let image = Tensor::<3>::from_data(TensorData::new(values, shape), &device).permute([2, 0, 1]).unsqueeze::<4>();
    let pixels = preprocess(image, image_encoder().config()).unwrap().into_data();
    // The reference rounds to 8 bits after each of two passes, which makes at most one grey level of the green channel,
    // 1 / 255 / 0.2613. Bilinear weights (0.018, antialiased 0.031) and bicubic ones without antialiasing (0.0159) are
    // further away.
    let expected = data("feature_extractor", "pixel_values");
    let errors: Vec<f32> =
        pixels.iter::<f32>().zip(expected.iter::<f32>()).map(|(found, expected)| (found - expected).abs()).collect();
    let worst = errors.iter().copied().fold(0.0, f32::max);
    assert_eq!(errors.len(), 3 * 24 * 24);
    assert!(worst < 0.0151, "largest error {worst}");
}
