//! The options of decoder and upsampler: inpainting, self-conditioning, caption encoder, guidance interval, tiles.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use burn::module::{ModuleMapper, Param};
use burn::prelude::*;
use burn::tensor::Tolerance;
use dalle2_core::diffusion::{Clip, GuidanceInterval, PredictionType, Resampling, Sampler, SeededNoise, Spacing};
use dalle2_core::image::{Mask, resize_bicubic};
use dalle2_core::{
    Captions, Component, Decoder, DiffusionOptions, Inpainting, StepEvent, TextCondition, Tiling, TokenMask, Upsampler,
    UpsamplerOptions,
};
use dalle2_decoder::{
    CaptionEncoderConfig, DecoderConfig, DiffusionUpsampler, NoiseLevel, UnclipDecoder, UpsamplerConfig,
};

use support::Randomise;

/// Silences the channels behind the noisy image: the first convolution is the only one of 6 · 2² channels.
struct Blind;

impl ModuleMapper for Blind {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|value| match D == 4 && value.dims()[1] == 24 {
            true => Tensor::cat(vec![value.clone().slice_dim(1, 0..12), value.slice_dim(1, 12..24).zeros_like()], 1),
            false => value,
        })
    }
}

fn decoder_config() -> DecoderConfig {
    let mut config = DecoderConfig::tiny(8, 6);
    config.image_size = 16;
    config.unet.channels = vec![16, 32];
    config.unet.n_groups = 8;
    config.unet.head_dim = 16;
    config.unet.context_dim = Some(16);
    config
}

fn decoder(config: &DecoderConfig) -> UnclipDecoder {
    let network = config.init(&Device::flex()).map(&mut Randomise::new(1, 0.1));
    UnclipDecoder::new(config.clone(), network).unwrap()
}

fn upsampler_config() -> UpsamplerConfig {
    let mut config = UpsamplerConfig::tiny();
    config.input_size = 8;
    config.unet.channels = vec![16, 16];
    config.unet.n_groups = 8;
    config
}

fn upsampler(config: &UpsamplerConfig) -> DiffusionUpsampler {
    let network = config.init(&Device::flex()).map(&mut Randomise::new(2, 0.1));
    DiffusionUpsampler::new(config.clone(), network).unwrap()
}

fn text(batch: usize, first_id: i64) -> TextCondition {
    let device = Device::flex();
    let value = |n: usize| Tensor::<1, Int>::arange(0..n as i64, &device).float() * 0.01;
    let ids = Tensor::<1, Int>::arange(first_id..first_id + 5 * batch as i64, &device).reshape([batch, 5]);
    TextCondition {
        pooled: value(batch * 8).reshape([batch, 8]),
        tokens: value(batch * 30).reshape([batch, 5, 6]),
        mask: TokenMask::from_lengths(&vec![3; batch], 5, &device).with_ids(ids),
    }
}

fn embedding() -> Tensor<2> {
    (Tensor::<1, Int>::arange(0..8, &Device::flex()).float().reshape([1, 8]) * 0.7).sin()
}

fn options(steps: usize) -> DiffusionOptions {
    DiffusionOptions { steps: Some(steps), ..Default::default() }
}

fn upsampler_options(steps: usize) -> UpsamplerOptions {
    UpsamplerOptions { steps: Some(steps), ..Default::default() }
}

fn decode(decoder: &UnclipDecoder, text: &TextCondition, options: &DiffusionOptions) -> Tensor<4> {
    let mut noise = SeededNoise::new(&[5], 2);
    let captions = Captions { text, null: &self::text(1, 0) };
    let mut go_on = |_: StepEvent<'_>| Ok(());
    decoder.sample(&embedding(), captions, None, options, &mut noise, &mut go_on).unwrap()
}

fn difference(a: Tensor<4>, b: Tensor<4>) -> f32 {
    (a - b).abs().max().into_scalar::<f32>()
}

fn picture(size: usize) -> Tensor<4> {
    let values: Vec<f32> = (0..3 * size * size).map(|i| (i as f32 * 0.37).sin() * 0.9).collect();
    Tensor::from_data(TensorData::new(values, [1, 3, size, size]), &Device::flex())
}

#[test]
fn kept_pixels_come_back_bit_for_bit_with_and_without_mask_channels() {
    let mask = Mask::edit_where(16, 16, |x, y| x < 6 && y > 3);
    for config in [decoder_config(), decoder_config().with_inpainting()] {
        let decoder = decoder(&config);
        let inpainting = Inpainting::new(picture(16), mask.clone()).unwrap().with_resampling(Resampling::default());
        for sampler in [Sampler::Ddim { eta: 0.0 }, Sampler::Ddpm] {
            let options = DiffusionOptions { sampler: Some(sampler), ..options(6) };
            let mut evaluations = 0;
            let mut noise = SeededNoise::new(&[5, 6], 2);
            let out = decoder
                .sample(
                    &embedding().repeat_dim(0, 2),
                    Captions { text: &text(2, 0), null: &text(1, 0) },
                    Some(&inpainting),
                    &options,
                    &mut noise,
                    &mut |_| {
                        evaluations += 1;
                        Ok(())
                    },
                )
                .unwrap();
            assert_eq!(out.dims(), [2, 3, 16, 16]);
            let keep = mask.keep_tensor(&Device::flex());
            let kept = (out.clone() - picture(16)) * keep.clone();
            assert_eq!(kept.abs().max().into_scalar::<f32>(), 0.0);
            assert!(((out - picture(16)) * (keep.neg() + 1.0)).abs().max().into_scalar::<f32>() > 0.05);
            // A network that reads the known pixels needs no second round.
            let expected = if config.inpainting { 6 } else { Resampling::default().evaluations(6) };
            assert_eq!(evaluations, expected);
        }
    }
}

#[test]
fn an_upsampler_inpaints_at_its_large_size() {
    let mask = Mask::keep_where(32, 32, |x, _| x < 16);
    for config in [upsampler_config(), upsampler_config().with_inpainting()] {
        let inpainting = Inpainting::new(picture(32), mask.clone()).unwrap();
        let mut noise = SeededNoise::new(&[1], 3);
        let mut go_on = |_: StepEvent<'_>| Ok(());
        let out = upsampler(&config)
            .sample(&picture(8), Some(&inpainting), &upsampler_options(3), &mut noise, &mut go_on)
            .unwrap();
        let left = out.slice_dim(3, 0..16);
        left.into_data().assert_eq(&picture(32).slice_dim(3, 0..16).into_data(), true);
    }
    let two = Inpainting::new(picture(32).repeat_dim(0, 2), mask).unwrap();
    let mut noise = SeededNoise::new(&[1], 3);
    let mut go_on = |_: StepEvent<'_>| Ok(());
    let result =
        upsampler(&upsampler_config()).sample(&picture(8), Some(&two), &upsampler_options(3), &mut noise, &mut go_on);
    assert!(result.unwrap_err().to_string().contains("2 images to preserve for a batch of 1"));
}

#[test]
fn self_conditioning_reads_the_last_estimate() {
    let config = decoder_config().with_self_conditioning();
    let decoder = decoder(&config);
    // With one step there is no estimate to read yet, so the weights of its channels do not matter; with more they do.
    let without = UnclipDecoder::new(config, decoder.network().unwrap().map(&mut Blind)).unwrap();
    let draw = |decoder: &UnclipDecoder, steps| decode(decoder, &text(1, 0), &options(steps));
    assert_eq!(difference(draw(&decoder, 1), draw(&without, 1)), 0.0);
    assert!(difference(draw(&decoder, 5), draw(&without, 5)) > 1e-4);
}

#[test]
fn a_caption_encoder_reads_token_ids_and_nothing_else_of_the_caption() {
    let encoder = CaptionEncoderConfig { vocab_size: 60, context_length: 8, d_model: 16, n_heads: 2, n_layers: 1 };
    let config = DecoderConfig { caption_encoder: Some(encoder), ..decoder_config() };
    let decoder = decoder(&config);
    let draw = |text: &TextCondition| decode(&decoder, text, &options(2));
    let first = draw(&text(1, 10));
    assert!(difference(first.clone(), draw(&text(1, 20))) > 1e-4);
    let changed = TextCondition { tokens: text(1, 10).tokens * 3.0, ..text(1, 10) };
    assert_eq!(difference(first, draw(&changed)), 0.0);

    let mut plain = text(1, 10);
    plain.mask = TokenMask::from_lengths(&[3], 5, &Device::flex());
    let mut noise = SeededNoise::new(&[5], 2);
    let mut go_on = |_: StepEvent<'_>| Ok(());
    let captions = Captions { text: &plain, null: &text(1, 0) };
    let error = decoder.sample(&embedding(), captions, None, &options(2), &mut noise, &mut go_on).unwrap_err();
    assert!(error.to_string().contains("token ids"), "{error}");
}

#[test]
fn an_interval_without_timesteps_is_no_guidance_and_a_full_one_is_all() {
    let decoder = decoder(&decoder_config());
    let with = |guidance, interval: Option<[f64; 2]>| {
        let guidance_interval = interval.map(|[low, high]| GuidanceInterval { low, high });
        let options = DiffusionOptions { guidance: Some(guidance), guidance_interval, ..options(3) };
        decode(&decoder, &text(1, 0), &options)
    };
    let close = |a: Tensor<4>, b: Tensor<4>| {
        a.into_data().assert_approx_eq::<f32>(&b.into_data(), Tolerance::rel_abs(1e-4, 1e-5));
    };
    close(with(5.0, Some([0.3, 0.31])), with(1.0, None));
    close(with(5.0, Some([0.0, 1.0])), with(5.0, None));
    let partly = with(5.0, Some([0.4, 1.0]));
    assert!(difference(partly.clone(), with(5.0, None)) > 1e-4 && difference(partly, with(1.0, None)) > 1e-4);
}

#[test]
fn samplers_spacings_and_clips_of_a_request_are_used() {
    let decoder = decoder(&decoder_config());
    let base = decode(&decoder, &text(1, 0), &options(6));
    for changed in [
        DiffusionOptions { sampler: Some(Sampler::DpmSolver2m), ..options(6) },
        DiffusionOptions { sampler: Some(Sampler::DpmSolver2s), ..options(6) },
        DiffusionOptions { spacing: Some(Spacing::Sections(vec![4, 2])), ..options(6) },
        // The largest value, which is beyond 1 wherever the usual bound does anything.
        DiffusionOptions { clip: Some(Clip::DynamicThreshold { quantile: 1.0 }), ..options(6) },
    ] {
        assert!(difference(decode(&decoder, &text(1, 0), &changed), base.clone()) > 1e-4, "{changed:?}");
    }
    let bad = DiffusionOptions { clip: Some(Clip::Range(-1.0)), ..options(6) };
    assert!(decoder.num_steps(&bad, None).unwrap_err().to_string().contains("clip.range"));
    let inpainting = Some(Resampling::default());
    let steps = decoder.num_steps(&options(6), inpainting).unwrap();
    assert_eq!((decoder.num_steps(&options(6), None).unwrap(), steps), (6, Resampling::default().evaluations(6)));
}

#[test]
fn tiles_that_hold_the_image_change_nothing_and_smaller_ones_little() {
    let upsampler = upsampler(&upsampler_config());
    let run = |tiling| {
        let mut noise = SeededNoise::new(&[3], 3);
        let options = UpsamplerOptions { tiling, ..upsampler_options(4) };
        upsampler.sample(&picture(24), None, &options, &mut noise, &mut |_| Ok(()))
    };
    let whole = run(None).unwrap();
    assert_eq!(whole.dims(), [1, 3, 96, 96]);
    let same = run(Some(Tiling { size: 96, overlap: 16 })).unwrap();
    same.into_data().assert_eq(&whole.clone().into_data(), true);
    let tiled = run(Some(Tiling { size: 64, overlap: 32 })).unwrap();
    let rms = (tiled - whole.clone()).square().mean().into_scalar::<f32>().sqrt();
    let spread = (whole.clone() - whole.mean().reshape([1, 1, 1, 1])).square().mean().into_scalar::<f32>().sqrt();
    assert!(rms < 0.1 * spread, "deviation {rms} of {spread}");
    for (size, overlap) in [(60, 32), (64, 40), (0, 0), (64, 12)] {
        assert!(run(Some(Tiling { size, overlap })).unwrap_err().to_string().contains("tiling"), "{size} {overlap}");
    }
}

#[test]
fn noise_on_the_small_image_is_drawn_from_the_source_and_passed_to_the_network() {
    let mut config = upsampler_config();
    config.noise_level = Some(NoiseLevel { train_max: 0.5, sampling: 0.0 });
    config.unet.in_channels = config.in_channels();
    let quiet = upsampler(&config);
    let mut loud = config.clone();
    loud.noise_level = Some(NoiseLevel { train_max: 0.5, sampling: 0.3 });
    let loud = DiffusionUpsampler::new(loud, quiet.networks().unwrap().first).unwrap();
    let run = |upsampler: &DiffusionUpsampler| {
        let mut noise = SeededNoise::new(&[3], 3);
        upsampler.sample(&picture(8), None, &upsampler_options(3), &mut noise, &mut |_| Ok(())).unwrap()
    };
    assert_eq!(difference(run(&quiet), run(&quiet)), 0.0);
    assert!(difference(run(&quiet), run(&loud)) > 1e-3);
    config.unet.in_channels = 6;
    assert!(config.validate().unwrap_err().to_string().contains("noise_level"));
}

#[test]
fn a_residual_upsampler_begins_as_bicubic_enlargement() {
    let mut config = upsampler_config();
    config.residual = true;
    let device = Device::flex();
    let fresh = DiffusionUpsampler::new(config.clone(), config.init(&device)).unwrap();
    let low = picture(8);
    let draw = |upsampler: &DiffusionUpsampler, options: &UpsamplerOptions| {
        let mut noise = SeededNoise::new(&[5], 3);
        upsampler.sample(&low, None, options, &mut noise, &mut |_: StepEvent<'_>| Ok(())).unwrap()
    };
    let bicubic = resize_bicubic(low.clone(), [32, 32]).clamp(-1.0, 1.0);
    let tiling = Some(Tiling { size: 16, overlap: 8 });
    for options in [upsampler_options(3), UpsamplerOptions { tiling, ..upsampler_options(3) }] {
        let found = difference(draw(&fresh, &options), bicubic.clone());
        assert!(found < 1e-5, "differs from bicubic enlargement by {found}");
    }
    let random = upsampler(&config);
    let apart = difference(draw(&random, &upsampler_options(3)), bicubic);
    assert!(apart > 0.05, "a network that predicts something changes the image: {apart}");
    assert!(random.diffusers_faults().iter().any(|fault| fault.contains("residual")));

    config.diffusion.prediction = PredictionType::V;
    let error = config.validate().unwrap_err();
    assert_eq!(error.field, "residual");
    assert!(error.to_string().contains("XStart"), "{error}");
}
