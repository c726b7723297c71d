use super::*;
use crate::unet::{TimeConditioning, UNetVariations};
use burn::tensor::{TensorData, Tolerance};
use dalle2_core::diffusion::{NoiseSource, SeededNoise};
use support::Randomise;

fn config() -> UNetConfig {
    UNetConfig {
        in_channels: 3,
        out_channels: 6,
        channels: vec![16, 32],
        attention: vec![false, true],
        n_res_blocks: 1,
        patch: 2,
        head_dim: 16,
        n_groups: 8,
        context_dim: Some(12),
        time_dim: None,
        time_conditioning: TimeConditioning::Film,
        dropout: 0.0,
        variations: UNetVariations::default(),
    }
}

#[path = "../../tests/support/mod.rs"]
mod support;

fn random<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    let values = SeededNoise::new(&[11], 0).normal(&[1, shape.iter().product()]).unwrap();
    Tensor::from_data(TensorData::new(values, shape), device)
}

#[test]
fn a_fresh_network_predicts_zero_at_any_fitting_size() {
    let device = Device::flex();
    let net = config().init(&device);
    for (h, w) in [(8, 8), (12, 20)] {
        let emb = net.time_embedding(&[3, 900], &device);
        let tokens = random([2, 5, 12], &device);
        let context = net.context(tokens, &TokenMask::from_lengths(&[5, 2], 5, &device));
        let out = net.forward(random([2, 3, h, w], &device), emb, Some(&context));
        assert_eq!(out.dims(), [2, 6, h, w]);
        assert_eq!(out.abs().max().into_scalar::<f32>(), 0.0);
    }
}

#[test]
fn masked_tokens_do_not_matter_and_others_do() {
    let device = Device::flex();
    let net = config().init(&device).map(&mut Randomise::new(1, 0.2));
    let x = random([1, 3, 8, 8], &device);
    let run = |last: f64, first: f64| {
        let tokens = Tensor::<3>::ones([1, 3, 12], &device);
        let tokens = tokens.slice_fill([0..1, 2..3, 0..12], last).slice_fill([0..1, 0..1, 0..12], first);
        let context = net.context(tokens, &TokenMask::from_lengths(&[2], 3, &device));
        net.forward(x.clone(), net.time_embedding(&[500], &device), Some(&context))
    };
    let difference = |a: Tensor<4>, b: Tensor<4>| (a - b).abs().max().into_scalar::<f32>();
    assert_eq!(difference(run(1.0, 1.0), run(50.0, 1.0)), 0.0);
    assert!(difference(run(1.0, 1.0), run(1.0, 3.0)) > 1e-4);
}

#[test]
fn time_reaches_the_output_by_film_and_by_addition() {
    let device = Device::flex();
    for time_conditioning in [TimeConditioning::Film, TimeConditioning::Additive] {
        let config = UNetConfig { time_conditioning, context_dim: None, ..config() };
        let net = config.init(&device).map(&mut Randomise::new(2, 0.2));
        let x = random([1, 3, 8, 8], &device);
        let at = |t| net.forward(x.clone(), net.time_embedding(&[t], &device), None);
        assert!((at(0) - at(999)).abs().max().into_scalar::<f32>() > 1e-4, "{time_conditioning:?}");
    }
}

#[test]
fn shuffling_inverts_unshuffling_and_keeps_blocks_together() {
    let device = Device::flex();
    let x = random([2, 3, 8, 12], &device);
    let blocks = pixel_unshuffle(x.clone(), 4);
    assert_eq!(blocks.dims(), [2, 48, 2, 3]);
    let first_block = x.clone().slice([0..1, 0..1, 0..4, 4..8]).reshape([16]);
    let channels = blocks.clone().slice([0..1, 0..16, 0..1, 1..2]).reshape([16]);
    channels.into_data().assert_eq(&first_block.into_data(), true);
    pixel_shuffle(blocks, 4).into_data().assert_eq(&x.into_data(), true);
}

#[test]
fn every_pixel_moves_as_one_permutation_says() {
    let device = Device::flex();
    for p in [2, 3, 4] {
        let (b, c, rows, columns) = (2, 5, 3, 17);
        let x = random([b, c, rows * p, columns * p], &device);
        let of_blocks = x.clone().reshape([b, c, rows, p, columns, p]).permute([0, 1, 3, 5, 2, 4]);
        let expected = of_blocks.reshape([b, c * p * p, rows, columns]);
        let blocks = pixel_unshuffle(x.clone(), p);
        blocks.clone().into_data().assert_eq(&expected.into_data(), true);
        pixel_shuffle(blocks, p).into_data().assert_eq(&x.into_data(), true);
    }
}

#[test]
fn batch_rows_do_not_mix() {
    let device = Device::flex();
    let net = UNetConfig { context_dim: None, ..config() }.init(&device).map(&mut Randomise::new(3, 0.2));
    let x = random([3, 3, 8, 8], &device);
    let all = net.forward(x.clone(), net.time_embedding(&[1, 400, 999], &device), None);
    let one = net.forward(x.slice_dim(0, 1..2), net.time_embedding(&[400], &device), None);
    one.into_data().assert_approx_eq::<f32>(&all.slice_dim(0, 1..2).into_data(), Tolerance::rel_abs(1e-4, 1e-4));
}

#[test]
#[should_panic(expected = "divisible by 4")]
fn a_size_that_does_not_fit_the_stride_panics() {
    let device = Device::flex();
    let net = config().init(&device);
    net.forward(random([1, 3, 8, 10], &device), net.time_embedding(&[0], &device), None);
}

#[test]
fn wrong_configurations_are_named() {
    let fails = |change: fn(&mut UNetConfig)| {
        let mut config = config();
        change(&mut config);
        config.validate().unwrap_err().field
    };
    assert_eq!(fails(|c| c.channels = vec![]), "channels");
    assert_eq!(fails(|c| c.channels[1] = 33), "channels[1]");
    assert_eq!(fails(|c| c.head_dim = 15), "channels[1]");
    assert_eq!(fails(|c| c.attention = vec![true]), "attention");
    assert_eq!(fails(|c| c.patch = 0), "patch");
    assert_eq!(fails(|c| c.dropout = 1.0), "dropout");
    assert!(config().validate().is_ok());
}
