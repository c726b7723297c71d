//! Sampling and storage of decoder and upsampler over their public faces.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use burn::prelude::*;
use burn::tensor::{Distribution, Tolerance};
use dalle2_core::diffusion::SeededNoise;
use dalle2_core::{
    Captions, Component, Decoder, DiffusionOptions, Error, FloatType, TextCondition, TokenMask, Upsampler,
    UpsamplerOptions,
};
use dalle2_decoder::{DecoderConfig, DiffusionUpsampler, UnclipDecoder, UpsamplerConfig};

use support::Randomise;

fn decoder(device: &Device) -> UnclipDecoder {
    let mut config = DecoderConfig::tiny(8, 6);
    config.image_size = 16;
    config.unet.channels = vec![16, 32];
    config.unet.n_groups = 8;
    config.unet.head_dim = 16;
    config.unet.context_dim = Some(16);
    let network = config.init(device).map(&mut Randomise::new(1, 0.1));
    UnclipDecoder::new(config, network).unwrap()
}

fn upsampler(device: &Device) -> DiffusionUpsampler {
    let mut config = UpsamplerConfig::tiny();
    config.input_size = 8;
    config.unet.channels = vec![16, 16];
    config.unet.n_groups = 8;
    let network = config.init(device).map(&mut Randomise::new(2, 0.1));
    DiffusionUpsampler::new(config, network).unwrap()
}

fn text(batch: usize, device: &Device) -> TextCondition {
    let value = |n: usize| Tensor::<1, Int>::arange(0..n as i64, device).float() * 0.01;
    TextCondition {
        pooled: value(batch * 8).reshape([batch, 8]),
        tokens: value(batch * 30).reshape([batch, 5, 6]),
        mask: TokenMask::from_lengths(&vec![3; batch], 5, device),
    }
}

fn embedding(batch: usize, device: &Device) -> Tensor<2> {
    (Tensor::<1, Int>::arange(0..batch as i64 * 8, device).float().reshape([batch, 8]) * 0.7).sin()
}

fn options() -> DiffusionOptions {
    DiffusionOptions { steps: Some(3), ..Default::default() }
}

fn upsampler_options() -> UpsamplerOptions {
    UpsamplerOptions { steps: Some(3), ..Default::default() }
}

fn decode(
    decoder: &UnclipDecoder,
    seeds: &[u64],
    options: &DiffusionOptions,
    device: &Device,
) -> Result<Tensor<4>, Error> {
    let n = seeds.len();
    let (embedding, text, null) = (embedding(n, device), text(n, device), text(1, device));
    let mut noise = SeededNoise::new(seeds, 2);
    decoder.sample(&embedding, Captions { text: &text, null: &null }, None, options, &mut noise, &mut |_| Ok(()))
}

#[test]
fn the_same_seed_draws_the_same_image_alone_and_in_a_batch() {
    let device = Device::flex();
    let decoder = decoder(&device);
    let first = decode(&decoder, &[5, 6], &options(), &device).unwrap();
    let again = decode(&decoder, &[5, 6], &options(), &device).unwrap();
    first.clone().into_data().assert_eq(&again.into_data(), true);
    let alone = decode(&decoder, &[5], &options(), &device).unwrap();
    let tolerance = Tolerance::rel_abs(1e-3, 1e-3);
    alone.into_data().assert_approx_eq::<f32>(&first.slice_dim(0, 0..1).into_data(), tolerance);
    let other = decode(&decoder, &[7], &options(), &device).unwrap();
    assert!((other - decode(&decoder, &[5], &options(), &device).unwrap()).abs().max().into_scalar::<f32>() > 1e-2);
}

#[test]
fn guidance_of_one_is_the_conditional_prediction_and_more_differs() {
    let device = Device::flex();
    let decoder = decoder(&device);
    let at = |scale: f64| {
        let options = DiffusionOptions { guidance: Some(scale), ..options() };
        decode(&decoder, &[1], &options, &device).unwrap()
    };
    let close = at(1.0 + 1e-9);
    close.into_data().assert_approx_eq::<f32>(&at(1.0).into_data(), Tolerance::rel_abs(1e-3, 1e-3));
    assert!((at(4.0) - at(1.0)).abs().max().into_scalar::<f32>() > 1e-3);
}

#[test]
fn a_saved_decoder_and_upsampler_draw_the_same_images() {
    let device = Device::flex();
    let dir = tempfile::tempdir().unwrap();
    let saved = decoder(&device);
    saved.save(dir.path(), FloatType::F32).unwrap();
    let loaded = UnclipDecoder::load(dir.path(), &device).unwrap();
    let images = decode(&saved, &[3], &options(), &device).unwrap();
    decode(&loaded, &[3], &options(), &device).unwrap().into_data().assert_eq(&images.into_data(), true);

    let error = DiffusionUpsampler::load(dir.path(), &device).unwrap_err().to_string();
    assert!(error.contains("_class_name") && error.contains("Dalle2Upsampler"), "{error}");

    let saved = upsampler(&device);
    saved.save(dir.path(), FloatType::F32).unwrap();
    let loaded = DiffusionUpsampler::load(dir.path(), &device).unwrap();
    let low = Tensor::<4>::random([1, 3, 8, 12], Distribution::Uniform(-1.0, 1.0), &device);
    let run = |upsampler: &DiffusionUpsampler| {
        let mut noise = SeededNoise::new(&[3], 3);
        upsampler.sample(&low, None, &upsampler_options(), &mut noise, &mut |_| Ok(())).unwrap()
    };
    let images = run(&saved);
    assert_eq!(images.dims(), [1, 3, 32, 48]);
    run(&loaded).into_data().assert_eq(&images.into_data(), true);
}

#[test]
fn the_hook_sees_every_step_and_can_stop() {
    let device = Device::flex();
    let decoder = decoder(&device);
    let mut seen = Vec::new();
    let mut noise = SeededNoise::new(&[1], 2);
    let captions = Captions { text: &text(1, &device), null: &text(1, &device) };
    let result = decoder.sample(&embedding(1, &device), captions, None, &options(), &mut noise, &mut |e| {
        assert_eq!(e.x_start.unwrap().dims(), [1, 3, 16, 16]);
        seen.push((e.step, e.total));
        if e.step == 2 { Err(Error::Cancelled) } else { Ok(()) }
    });
    assert!(matches!(result, Err(Error::Cancelled)));
    assert_eq!(seen, [(1, 3), (2, 3)]);
}

#[test]
fn bad_input_is_named() {
    let device = Device::flex();
    let decoder = decoder(&device);
    let message = |options: DiffusionOptions| decode(&decoder, &[1], &options, &device).unwrap_err().to_string();
    assert!(message(DiffusionOptions { steps: Some(0), ..options() }).contains("steps"));
    assert!(message(DiffusionOptions { steps: Some(1001), ..options() }).contains("1000"));
    assert!(message(DiffusionOptions { guidance: Some(f64::NAN), ..options() }).contains("guidance"));

    let mut noise = SeededNoise::new(&[1], 2);
    let mut go = |_: dalle2_core::StepEvent<'_>| Ok(());
    let nan = embedding(1, &device) * f32::NAN;
    let captions = Captions { text: &text(1, &device), null: &text(1, &device) };
    let error = decoder.sample(&nan, captions, None, &options(), &mut noise, &mut go).unwrap_err();
    assert!(error.to_string().contains("not finite"), "{error}");
    let wide = Tensor::<2>::zeros([1, 9], &device);
    let error = decoder.sample(&wide, captions, None, &options(), &mut noise, &mut go).unwrap_err();
    assert!(error.to_string().contains("width 8"), "{error}");

    let low = Tensor::<4>::zeros([1, 3, 9, 9], &device);
    let error =
        upsampler(&device).sample(&low, None, &upsampler_options(), &mut noise, &mut go).unwrap_err().to_string();
    assert!(error.contains("multiples of 8"), "{error}");
}

#[test]
fn captions_alone_are_drawn_with_the_embedding_that_stands_for_no_image() {
    let device = Device::flex();
    let decoder = decoder(&device);
    let (text, null) = (text(2, &device), text(1, &device));
    let draw = |text: &TextCondition, guidance| {
        let options = DiffusionOptions { guidance: Some(guidance), ..options() };
        let mut noise = SeededNoise::new(&[4, 5], 2);
        decoder.sample_captions(Captions { text, null: &null }, &options, &mut noise, &mut |_| Ok(())).unwrap()
    };
    // Without guidance the empty caption without an image is what guidance 0 leaves of any caption and image.
    let nothing = DiffusionOptions { guidance: Some(0.0), ..options() };
    let mut noise = SeededNoise::new(&[4, 5], 2);
    let mut go_on = |_: dalle2_core::StepEvent<'_>| Ok(());
    let captions = Captions { text: &text, null: &null };
    let expected = decoder.sample(&embedding(2, &device), captions, None, &nothing, &mut noise, &mut go_on).unwrap();
    let found = draw(&null.repeat_interleave(2), 1.0);
    found.into_data().assert_approx_eq::<f32>(&expected.clone().into_data(), Tolerance::rel_abs(1e-4, 1e-5));
    let other = TextCondition { tokens: (text.tokens.clone() * 70.0).sin(), ..text };
    let difference = (draw(&other, 3.0) - expected).abs().max().into_scalar::<f32>();
    assert!(difference > 1e-4, "the caption is read: {difference}");
}
