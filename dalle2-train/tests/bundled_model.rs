//! The bundled model loads and generates.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};

use dalle2::base::image::{Mask, RgbImage, to_tensor};
use dalle2::base::metrics::psnr;
use dalle2::base::store::read_json;
use dalle2::decoder::DiffusionUpsampler;
use dalle2::{Device, FloatType, GenerateRequest, LoadOptions, Pipeline};
use dalle2_emoji::{EmojiStore, Split, Subset};

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/emoji")
}

#[test]
fn the_bundled_model_draws_from_its_caption_and_seed() {
    let pipeline = Pipeline::from_pretrained(model(), &Device::flex()).unwrap();
    assert_eq!((pipeline.decoder().image_size(), pipeline.image_size()), (32, 128));
    let generate = |caption: &str| {
        let request = GenerateRequest::new(caption).seed(1).decoder_steps(10).upsampler_steps(2);
        pipeline.generate(request).unwrap().images.remove(0)
    };
    let apple = generate("red apple");
    assert_eq!(apple.dimensions(), (128, 128));
    assert_eq!(apple, generate("red apple"));
    assert_ne!(apple, generate("koala"));
}

#[test]
fn weights_of_16_bits_draw_nearly_the_same() {
    let device = Device::flex();
    let generate = |compute_type| {
        let options = LoadOptions::new(&device).compute_type(compute_type);
        let pipeline = Pipeline::from_pretrained_with(model(), &options).unwrap();
        let request = GenerateRequest::new("red apple").seed(3).num_images(2).decoder_steps(20);
        to_tensor(&pipeline.generate(request).unwrap().images, &device).unwrap()
    };
    let exact = generate(FloatType::F32);
    // The files hold f16, which is widened to what f32 would have been.
    assert_eq!(psnr(generate(FloatType::F16), exact.clone()).unwrap(), [f64::INFINITY; 2]);
    let found = psnr(generate(FloatType::Bf16), exact).unwrap();
    assert!(found.iter().all(|psnr| *psnr > 35.0 && psnr.is_finite()), "{found:?} dB");
}

/// Sum of squared differences of all channels.
fn distance(a: &RgbImage, b: &RgbImage) -> u64 {
    a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| u64::from(a.abs_diff(*b)).pow(2)).sum()
}

#[test]
fn the_bundled_model_draws_what_its_captions_say() {
    let pipeline = Pipeline::from_pretrained(model(), &Device::flex()).unwrap();
    let cache = tempfile::tempdir().unwrap();
    let store = EmojiStore::open(&[], cache.path()).unwrap();
    let items = Subset::Tiny.select(store.catalogue(), Split::Seen).unwrap();
    let renderings: Vec<RgbImage> = items.iter().map(|&item| store.image(item, 32).unwrap()).collect();
    let output = items.iter().step_by(8).map(|&item| {
        let caption = store.emoji(item).unwrap().name.as_str();
        let image = pipeline.generate(GenerateRequest::new(caption).max_upsamplers(0)).unwrap().images.remove(0);
        let nearest = (0..items.len()).min_by_key(|&i| distance(&image, &renderings[i])).unwrap();
        (items[nearest] == item, caption)
    });
    let output: Vec<(bool, &str)> = output.collect();
    let right = output.iter().filter(|(right, _)| *right).count();
    assert!(right >= 5, "the nearest of 48 images is the right one for {right} of 6: {output:?}");
}

#[test]
fn a_hole_is_filled_with_what_the_caption_says_and_the_rest_stays() {
    let pipeline = Pipeline::from_pretrained(model(), &Device::flex()).unwrap();
    let cache = tempfile::tempdir().unwrap();
    let store = EmojiStore::open(&[], cache.path()).unwrap();
    let items = Subset::Tiny.select(store.catalogue(), Split::Seen).unwrap();
    let renderings: Vec<RgbImage> = items.iter().map(|&item| store.image(item, 32).unwrap()).collect();
    let half = |image: &RgbImage, left| image::imageops::crop_imm(image, left, 0, 16, 32).to_image();
    let mask = Mask::edit_where(32, 32, |x, _| x >= 16);
    let mut right = 0;
    for shown in (0..items.len()).step_by(12) {
        let said = (shown + items.len() / 2) % items.len();
        let caption = store.emoji(items[said]).unwrap().name.as_str();
        let request = GenerateRequest::new(caption).seed(2).decoder_steps(10).max_upsamplers(0);
        let fill = pipeline.inpaint(&renderings[shown], &mask).request(request).run().unwrap().images.remove(0);
        assert_eq!(half(&fill, 0), half(&renderings[shown], 0));
        let output = half(&fill, 16);
        right += usize::from(
            (0..items.len()).min_by_key(|&i| distance(&output, &half(&renderings[i], 16))).unwrap() == said,
        );
    }
    assert!(right >= 3, "the nearest of 48 halves is the caption's for {right} of 4");
}

#[test]
fn the_second_upsampler_goes_behind_the_bundled_model_and_behind_nothing_else() {
    let device = Device::flex();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/emoji-1024/upsampler_2");
    let load = || DiffusionUpsampler::load(&dir, &device).unwrap();
    let pipeline = Pipeline::from_pretrained(model(), &device).unwrap();
    let pipeline = pipeline.to_builder().upsampler(load()).build().unwrap();
    assert_eq!(pipeline.image_size(), 1024);
    let error = pipeline.to_builder().upsampler(load()).build().unwrap_err().to_string();
    assert!(error.contains("1024") && error.contains("128"), "{error}");
}

#[test]
fn the_bundled_model_is_small() {
    let index: serde_json::Value = read_json(model().join("model_index.json")).unwrap();
    let parts = index.as_object().unwrap().keys().filter(|name| !name.starts_with('_'));
    let further = model().join("../emoji-1024/upsampler_2");
    let weights = parts.map(|part| model().join(part)).chain([further]).map(|dir| dir.join("model.safetensors"));
    let bytes: u64 = weights.map(|file| file.metadata().unwrap().len()).sum();
    assert!(bytes <= 24 << 20, "{bytes} bytes");
}

#[test]
fn an_image_is_taken_apart_and_put_together_again() {
    let pipeline = Pipeline::from_pretrained(model(), &Device::flex()).unwrap();
    let cache = tempfile::tempdir().unwrap();
    let store = EmojiStore::open(&[], cache.path()).unwrap();
    let image = store.image(store.find("red apple").unwrap(), 32).unwrap();
    let psnr =
        |steps, evaluations| pipeline.invert(&image).evaluations(evaluations).decoder_steps(steps).run().unwrap().psnr;
    let (few, more) = (psnr(8, 2), psnr(20, 2));
    assert!(few > 25.0 && more > few + 3.0, "{few} dB with 8 steps, {more} dB with 20");
    assert!(psnr(8, 1) < few, "a second evaluation brings the way to the noise closer to the way back");
}
