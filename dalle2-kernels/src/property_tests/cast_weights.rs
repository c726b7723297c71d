//! Layers with weights of 16 bits against f64 with the same rounded factors.

use burn::module::{Module, ModuleVisitor};
use burn::nn::{Embedding, EmbeddingConfig, GroupNorm, GroupNormConfig, Linear};
use burn::tensor::{DType, FloatDType};
use half::{bf16, f16};

use super::super::kernels::{WeightShape, kernels_enabled, multiplies_bf16};
use super::*;

const TYPES: [FloatDType; 2] = [FloatDType::F16, FloatDType::BF16];

/// The values as the type holds them.
fn rounded(values: &[f32], dtype: FloatDType) -> Vec<f32> {
    let round = |value: &f32| match dtype {
        FloatDType::F16 => f16::from_f32(*value).to_f32(),
        FloatDType::BF16 => bf16::from_f32(*value).to_f32(),
        other => panic!("{other:?} is no type of narrow weights"),
    };
    values.iter().map(round).collect()
}

/// What the layer makes of `x`: it is rounded like the weight where the processor multiplies pairs.
fn seen(x: &[f32], dtype: FloatDType, size: WeightShape) -> (Vec<f32>, bool) {
    let pairs = dtype == FloatDType::BF16 && multiplies_bf16(size) && kernels_enabled();
    (if pairs { rounded(x, dtype) } else { x.to_vec() }, pairs)
}

/// Factors within the range of f16.
const SCALES: [[f32; 2]; 5] = [[1.0, 1.0], [1e3, 1e-1], [1e-3, 1e2], [1e20, 1.0], [1e-30, 1.0]];

/// Denormal products count as zero.
fn floor(depth: usize) -> f64 {
    depth as f64 * f64::from(f32::MIN_POSITIVE)
}

#[test]
fn narrow_convolutions_agree_with_f64_over_random_shapes() {
    let (device, mut draw) = (Device::flex(), Draw::new(7));
    let mut by_pairs = 0;
    for number in 0..150 {
        let mut case = ConvCase::draw(&mut draw);
        (case.shape[1], case.out) = (draw.pick(&[32, 64, 96, 40]), draw.pick(&[32, 48, 57, 64, 20]));
        let [b, c, h, w] = case.shape;
        let ([of_x, of_weight], dtype) = (draw.pick(&SCALES), draw.pick(&TYPES));
        let mut x = draw.normal(b * c * h * w, of_x);
        let weight = draw.normal(case.weights(), of_weight);
        let bias = draw.normal(case.out, if case.bias { of_x * of_weight } else { 0.0 });
        let planted = draw.one_in(3).then(|| draw.plant(&mut x));
        let layer = cast_weights(case.layer(&weight, &bias, &device), dtype);
        let found = host(conv2d(&layer, tensor(&x, case.shape, &device)));
        let size = WeightShape { inputs: c, outputs: case.out, taps: case.window.k.pow(2) };
        let (x, pairs) = match case.window.stride {
            1 => seen(&x, dtype, size),
            _ => (x, false),
        };
        by_pairs += usize::from(pairs);
        let weight = rounded(&weight, dtype);
        let plane = found.len() / b / case.out;
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
        let may = |i: usize| planted.is_some_and(|at| tiled && case.in_tile(at, i));
        let what = format!("narrow convolution {number}, {case:?}, {dtype:?}, scale {of_x:e}, planted {planted:?}");
        check(&what, &found, &case.reference(&x, &weight, &bias), |i| tolerances[i / plane], may);
    }
    assert_eq!(by_pairs > 0, multiplies_bf16(WeightShape { inputs: 32, outputs: 32, taps: 1 }) && kernels_enabled());
}

#[test]
fn narrow_linear_maps_agree_with_f64_over_random_shapes() {
    let (device, mut draw) = (Device::flex(), Draw::new(8));
    for number in 0..150 {
        let (b, s) = (draw.size(3), draw.side(100));
        let (from, to) = (draw.pick(&[32, 64, 2048, 40]), draw.pick(&[32, 48, 57, 1000, 20]));
        let ([of_x, of_weight], dtype) = (draw.pick(&SCALES), draw.pick(&TYPES));
        let mut x = draw.normal(b * s * from, of_x);
        let (weight, bias) = (draw.normal(to * from, of_weight), draw.normal(to, of_x * of_weight));
        if draw.one_in(3) {
            draw.plant(&mut x);
        }
        let mut layer = LinearConfig::new(from, to).init(&device);
        layer.weight = Param::from_tensor(tensor(&weight, [to, from], &device).transpose());
        layer.bias = draw.one_in(2).then(|| Param::from_tensor(tensor(&bias, [to], &device)));
        let bias = if layer.bias.is_some() { bias } else { vec![0.0; to] };
        let found = host(linear(&cast_weights(layer, dtype), tensor(&x, [b, s, from], &device)));
        let (x, _) = seen(&x, dtype, WeightShape { inputs: from, outputs: to, taps: 1 });
        let weight = rounded(&weight, dtype);
        let point = Window { k: 1, stride: 1, padding: [0; 4] };
        // Errors of a sum grow with its length.
        let relative = 1e-6 * (from as f64 / 128.0).max(1.0).sqrt();
        let expected = conv_f64(&widen(&x), &widen(&weight), &widen(&bias), [b * s, from, 1, 1], point);
        let tolerance = |i: usize| {
            let (row, weight) = (largest(&x[i / to * from..][..from]), &weight[i % to * from..][..from]);
            relative * (row * length(weight) + largest(&bias[i % to..=i % to])) + floor(from)
        };
        let what = format!("narrow linear {number}, {b} × {s} rows, {from} to {to}, {dtype:?}, scale {of_x:e}");
        check(&what, &found, &expected, tolerance, |_| false);
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
