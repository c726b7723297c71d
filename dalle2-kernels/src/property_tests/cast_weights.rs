//! Layers with 16-bit weights against f64 with the same rounded factors.

use burn::module::{Module, ModuleVisitor};
use burn::nn::{Embedding, EmbeddingConfig, GroupNorm, GroupNormConfig, Linear};
use burn::tensor::{DType, FloatDType};
use half::{bf16, f16};

use super::super::kernels::{WeightShape, kernels_enabled, multiplies_bf16};
use super::*;

const TYPES: [FloatDType; 2] = [FloatDType::F16, FloatDType::BF16];

/// Rounds to a 16-bit type.
fn rounded(values: &[f32], dtype: FloatDType) -> Vec<f32> {
    let round = |value: &f32| match dtype {
        FloatDType::F16 => f16::from_f32(*value).to_f32(),
        FloatDType::BF16 => bf16::from_f32(*value).to_f32(),
        other => panic!("{other:?} is not a 16-bit type"),
    };
    values.iter().map(round).collect()
}

/// Rounds `x` to bf16 if the processor multiplies pairs; also returns whether it does.
fn round_input(x: &[f32], dtype: FloatDType, size: WeightShape) -> (Vec<f32>, bool) {
    let pairs = dtype == FloatDType::BF16 && multiplies_bf16(size) && kernels_enabled();
    (if pairs { rounded(x, dtype) } else { x.to_vec() }, pairs)
}

/// Scales of input and weight; f16 holds the weights.
const SCALES: [[f32; 2]; 5] = [[1.0, 1.0], [1e3, 1e-1], [1e-3, 1e2], [1e20, 1.0], [1e-30, 1.0]];

/// Tolerance for denormal products, which count as zero.
fn floor(depth: usize) -> f64 {
    depth as f64 * f64::from(f32::MIN_POSITIVE)
}

#[test]
fn low_precision_convolutions_agree_with_f64_over_random_shapes() {
    let (device, mut rng) = (Device::flex(), TestRng::new(7));
    let mut by_pairs = 0;
    for number in 0..150 {
        let mut case = ConvCase::random(&mut rng);
        (case.shape[1], case.out) = (rng.choose(&[32, 64, 96, 40]), rng.choose(&[32, 48, 57, 64, 20]));
        let [b, c, h, w] = case.shape;
        let ([x_scale, weight_scale], dtype) = (rng.choose(&SCALES), rng.choose(&TYPES));
        let mut x = rng.normal(b * c * h * w, x_scale);
        let weight = rng.normal(case.weights(), weight_scale);
        let bias = rng.normal(case.out, if case.bias { x_scale * weight_scale } else { 0.0 });
        let non_finite = rng.one_in(3).then(|| rng.insert_non_finite(&mut x));
        let layer = cast_weights(case.layer(&weight, &bias, &device), dtype);
        let actual = host(conv2d(&layer, tensor(&x, case.shape, &device)));
        let size = WeightShape { inputs: c, outputs: case.out, taps: case.window.k.pow(2) };
        let (x, pairs) = match case.window.stride {
            1 => round_input(&x, dtype, size),
            _ => (x, false),
        };
        by_pairs += usize::from(pairs);
        let weight = rounded(&weight, dtype);
        let plane = actual.len() / b / case.out;
        let tiled = case.tiled() && !pairs;
        let relative = if tiled { 1e-5 } else { 1e-6 };
        let tolerances: Vec<f64> = (0..b * case.out)
            .map(|row| {
                let (image, o) = (row / case.out, row % case.out);
                let pixels = largest(&x[image * c * h * w..][..c * h * w]);
                let weight = &weight[o * case.weights() / case.out..][..case.weights() / case.out];
                relative * (pixels * length(weight) + largest(&bias[o..=o])) + floor(weight.len())
            })
            .collect();
        let may = |i: usize| non_finite.is_some_and(|at| tiled && case.in_tile(at, i));
        let what = format!(
            "bf16 or f16 convolution {number}, {case:?}, {dtype:?}, scale {x_scale:e}, non_finite {non_finite:?}"
        );
        check(&what, &actual, &case.reference(&x, &weight, &bias), |i| tolerances[i / plane], may);
    }
    assert_eq!(by_pairs > 0, multiplies_bf16(WeightShape { inputs: 32, outputs: 32, taps: 1 }) && kernels_enabled());
}

#[test]
fn low_precision_linear_maps_agree_with_f64_over_random_shapes() {
    let (device, mut rng) = (Device::flex(), TestRng::new(8));
    for number in 0..150 {
        let (b, s) = (rng.size(3), rng.side(100));
        let (from, to) = (rng.choose(&[32, 64, 2048, 40]), rng.choose(&[32, 48, 57, 1000, 20]));
        let ([x_scale, weight_scale], dtype) = (rng.choose(&SCALES), rng.choose(&TYPES));
        let mut x = rng.normal(b * s * from, x_scale);
        let (weight, bias) = (rng.normal(to * from, weight_scale), rng.normal(to, x_scale * weight_scale));
        if rng.one_in(3) {
            rng.insert_non_finite(&mut x);
        }
        let mut layer = LinearConfig::new(from, to).init(&device);
        layer.weight = Param::from_tensor(tensor(&weight, [to, from], &device).transpose());
        layer.bias = rng.one_in(2).then(|| Param::from_tensor(tensor(&bias, [to], &device)));
        let bias = if layer.bias.is_some() { bias } else { vec![0.0; to] };
        let actual = host(linear(&cast_weights(layer, dtype), tensor(&x, [b, s, from], &device)));
        let (x, _) = round_input(&x, dtype, WeightShape { inputs: from, outputs: to, taps: 1 });
        let weight = rounded(&weight, dtype);
        let point = Window { k: 1, stride: 1, padding: [0; 4] };
        // Errors of a sum grow with its length.
        let relative = 1e-6 * (from as f64 / 128.0).max(1.0).sqrt();
        let expected = conv_f64(&to_f64(&x), &to_f64(&weight), &to_f64(&bias), [b * s, from, 1, 1], point);
        let tolerance = |i: usize| {
            let (row, weight) = (largest(&x[i / to * from..][..from]), &weight[i % to * from..][..from]);
            relative * (row * length(weight) + largest(&bias[i % to..=i % to])) + floor(from)
        };
        let what = format!("bf16 or f16 linear {number}, {b} × {s} rows, {from} to {to}, {dtype:?}, scale {x_scale:e}");
        check(&what, &actual, &expected, tolerance, |_| false);
    }
}

/// Types and shapes of all parameters.
#[derive(Default)]
struct Parameters(Vec<(DType, Vec<usize>)>);

impl ModuleVisitor for Parameters {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0.push((param.val().dtype(), param.dims().to_vec()));
    }
}

/// One layer of each type that the networks use, and tensors shaped like the weights of layers.
#[derive(Module, Debug)]
struct EveryLayer {
    linear: Linear,
    conv: Conv2d,
    nested: Option<Vec<Linear>>,
    table: Embedding,
    layer_norm: LayerNorm,
    group_norm: GroupNorm,
    weight: Param<Tensor<2>>,
    positions: Param<Tensor<4>>,
}

#[test]
fn only_the_weights_of_linear_and_convolution_layers_are_cast() {
    let device = Device::flex();
    let linear = || LinearConfig::new(32, 64).init(&device);
    let module = EveryLayer {
        linear: linear(),
        conv: Conv2dConfig::new([32, 64], [3, 3]).init(&device),
        nested: Some(vec![linear(), linear()]),
        table: EmbeddingConfig::new(40, 32).init(&device),
        layer_norm: LayerNormConfig::new(8).init(&device),
        group_norm: GroupNormConfig::new(2, 8).init(&device),
        weight: Param::from_tensor(Tensor::ones([32, 64], &device)),
        positions: Param::from_tensor(Tensor::ones([64, 32, 3, 3], &device)),
    };
    for dtype in TYPES {
        let mut parameters = Parameters::default();
        cast_weights(module.clone(), dtype).visit(&mut parameters);
        let (cast, f32) = (DType::from(dtype), DType::F32);
        let layer = [(cast, vec![32, 64]), (f32, vec![64])];
        let conv = [(cast, vec![64, 32, 3, 3]), (f32, vec![64])];
        let others = [vec![40, 32], vec![8], vec![8], vec![8], vec![8], vec![32, 64], vec![64, 32, 3, 3]];
        let layers = layer.clone().into_iter().chain(conv).chain(layer.clone()).chain(layer);
        let expected: Vec<_> = layers.chain(others.map(|shape| (f32, shape))).collect();
        assert_eq!(parameters.0, expected, "{dtype:?}");
    }
}
