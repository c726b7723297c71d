//! The model of the quick start loads and draws.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};

use dalle2::core::store::read_json;
use dalle2::{Device, GenerateRequest, Pipeline};

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/emoji")
}

#[test]
fn the_bundled_model_draws_from_its_caption_and_seed() {
    let pipeline = Pipeline::from_pretrained(model(), &Device::flex()).unwrap();
    assert_eq!((pipeline.decoder().image_size(), pipeline.image_size()), (64, 256));
    let draw = |caption: &str| {
        let request = GenerateRequest::new(caption).seed(1).decoder_steps(10).upsampler_steps(2);
        pipeline.generate(request).unwrap().images.remove(0)
    };
    let apple = draw("red apple");
    assert_eq!(apple.dimensions(), (256, 256));
    assert_eq!(apple, draw("red apple"));
    assert_ne!(apple, draw("koala"));
}

#[test]
fn the_bundled_model_is_small() {
    let index: serde_json::Value = read_json(model().join("model_index.json")).unwrap();
    let parts = index.as_object().unwrap().keys().filter(|name| !name.starts_with('_'));
    let bytes: u64 = parts.map(|part| model().join(part).join("model.safetensors").metadata().unwrap().len()).sum();
    assert!(bytes <= 24 << 20, "{bytes} bytes");
}
