//! The operations against f64 over random shapes and values: odd sizes, one-pixel images, channels that no vector
//! divides, and denormal, huge and non-finite values.
//!
//! A result must be non-finite exactly where the f64 result is, except where a test allows more. Tolerances are relative
//! to the sum of absolute terms, so that cancellation does not count, plus a floor for denormals.

mod attention;
mod cast_weights;

use burn::module::Param;
use burn::nn::{LinearConfig, PaddingConfig2d, conv::Conv2d, conv::Conv2dConfig};
use burn::prelude::*;
use burn::tensor::TensorData;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::reference::*;
use super::*;

/// Factors of normal values.
const SCALES: [f32; 8] = [1.0, 1.0, 1.0, 1e-3, 1e3, 1e-40, 1e18, 1e30];
/// Largest product of two scales. Below about 1e33 no partial sum overflows.
const MAX_RESULT: f32 = 1e31;
/// The smallest denormal number.
const DENORMAL: f64 = 1.4e-45;
/// Largest result that flushing small e⁻ˣ to 0 may lose.
const EXP_CUT: f64 = 1e-36;

struct TestRng(ChaCha8Rng);

impl TestRng {
    fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// A number from 1 to `max`.
    fn size(&mut self, max: usize) -> usize {
        self.0.random_range(1..=max)
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.size(n) == 1
    }

    fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.size(from.len()) - 1]
    }

    /// A number from 1 to 70, often next to a multiple of a vector width.
    fn channels(&mut self) -> usize {
        if self.one_in(2) { self.choose(&[15, 16, 17, 31, 32, 33, 64, 65]) } else { self.size(70) }
    }

    /// A number from 1 to `max`, often small and often 1.
    fn side(&mut self, max: usize) -> usize {
        let max = self.choose(&[1, 12, 12, max]);
        self.size(max)
    }

    fn normal(&mut self, n: usize, scale: f32) -> Vec<f32> {
        normal(self.0.random(), n).into_iter().map(|v| v * scale).collect()
    }

    /// Makes one element non-finite and returns its index.
    fn insert_non_finite(&mut self, values: &mut [f32]) -> usize {
        let at = self.size(values.len()) - 1;
        values[at] = self.choose(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
        at
    }

    /// Two scales with a product of at most [`MAX_RESULT`].
    fn two_scales(&mut self) -> [f32; 2] {
        loop {
            let scales = [self.choose(&SCALES), self.choose(&SCALES)];
            if scales[0] * scales[1] <= MAX_RESULT {
                return scales;
            }
        }
    }
}

/// Asserts that `actual` is non-finite where expected or where `may` allows it, and within the tolerance elsewhere.
fn check(what: &str, actual: &[f32], expected: &[f64], tolerance: impl Fn(usize) -> f64, may: impl Fn(usize) -> bool) {
    assert_eq!(actual.len(), expected.len(), "{what}: length");
    for (i, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        if !actual.is_finite() || !expected.is_finite() {
            let right = !actual.is_finite() && (!expected.is_finite() || may(i));
            assert!(right, "{what}[{i}]: actual {actual}, expected {expected}");
            continue;
        }
        let (error, max) = ((f64::from(*actual) - expected).abs(), tolerance(i));
        assert!(error <= max, "{what}[{i}]: actual {actual}, expected {expected}, off by {error:e} > {max:e}");
    }
}

/// The largest finite magnitude.
fn largest(values: &[f32]) -> f64 {
    values.iter().filter(|v| v.is_finite()).fold(0.0, |max, v| f64::from(v.abs()).max(max))
}

/// The Euclidean length of the finite elements.
fn length<T: Copy + Into<f64>>(values: &[T]) -> f64 {
    values.iter().map(|v| (*v).into()).filter(|v| v.is_finite()).map(|v| v * v).sum::<f64>().sqrt()
}

#[derive(Debug)]
struct ConvCase {
    shape: [usize; 4],
    out: usize,
    window: Window,
    bias: bool,
}

impl ConvCase {
    /// A random convolution of at most a few million multiply-adds.
    fn random(rng: &mut TestRng) -> Self {
        loop {
            let window = match rng.size(8) {
                1 => Window { k: 1, stride: 1, padding: [0; 4] },
                2 => Window { k: 3, stride: 2, padding: [rng.choose(&[0, 1]); 4] },
                3..6 => Window { k: 3, stride: 1, padding: [rng.choose(&[0, 1, 1, 2]); 4] },
                _ => {
                    let [start, end] = [&[0, 1, 2][..], &[0, 1, 2, 3, 7][..]];
                    let padding = [rng.choose(start), rng.choose(start), rng.choose(end), rng.choose(end)];
                    Window { k: 3, stride: 1, padding }
                }
            };
            let shape = [rng.size(3), rng.channels(), rng.side(40), rng.side(37)];
            let (out, bias) = (rng.channels(), rng.one_in(2));
            let case = Self { shape, out, window, bias };
            let work = window.grid([shape[2], shape[3]]).map(|grid| case.weights() * shape[0] * grid[0] * grid[1]);
            if work.is_some_and(|work| work < 6_000_000) {
                return case;
            }
        }
    }

    fn weights(&self) -> usize {
        self.out * self.shape[1] * self.window.k.pow(2)
    }

    fn layer(&self, weight: &[f32], bias: &[f32], device: &Device) -> Conv2d {
        let Window { k, stride, padding: [top, left, bottom, right] } = self.window;
        let mut layer = Conv2dConfig::new([self.shape[1], self.out], [k, k])
            .with_stride([stride, stride])
            .with_padding(PaddingConfig2d::Explicit(top, left, bottom, right))
            .init(device);
        layer.weight = Param::from_tensor(tensor(weight, [self.out, self.shape[1], k, k], device));
        layer.bias = self.bias.then(|| Param::from_tensor(tensor(bias, [self.out], device)));
        layer
    }

    fn reference(&self, x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f64> {
        conv_f64(&to_f64(x), &to_f64(weight), &to_f64(bias), self.shape, self.window)
    }

    /// Whether the layer may compute tiles by Winograd's method.
    fn tiled(&self) -> bool {
        self.window.k == 3 && self.window.stride == 1 && self.shape[1].min(self.out) >= 16
    }

    /// Whether value `at` of x lies in the 6 × 6 pixels that the tile of result `i` reads, or a smaller one within it.
    fn in_tile(&self, at: usize, i: usize) -> bool {
        let [_, c, h, w] = self.shape;
        let [h_out, w_out] = self.window.grid([h, w]).unwrap();
        let reads = |result: usize, padding: usize, pixel: usize| {
            let first = result / 4 * 4;
            (first..first + 6).contains(&(pixel + padding))
        };
        let [top, left, ..] = self.window.padding;
        at / (c * h * w) == i / (self.out * h_out * w_out)
            && reads(i / w_out % h_out, top, at / w % h)
            && reads(i % w_out, left, at % w)
    }
}

/// A non-finite weight or bias may reach all of its output channel; a non-finite pixel what depends on it, and with
/// Winograd's method the tiles that read it, but neither another tile nor another image.
#[test]
fn convolutions_agree_with_f64_over_random_shapes() {
    let (device, mut rng) = (Device::flex(), TestRng::new(1));
    for number in 0..400 {
        let case = ConvCase::random(&mut rng);
        let [b, c, h, w] = case.shape;
        let [x_scale, weight_scale] = rng.two_scales();
        // Images of a batch may differ in size.
        let mut x = Vec::new();
        for _ in 0..b {
            let scale = if rng.one_in(2) { x_scale } else { x_scale.min(1.0) };
            x.extend(rng.normal(c * h * w, scale));
        }
        let mut weight = rng.normal(case.weights(), weight_scale);
        let mut bias = rng.normal(case.out, if case.bias { (x_scale * weight_scale).max(1e-40) } else { 0.0 });
        let non_finite = rng.one_in(3).then(|| rng.size(if case.bias { 3 } else { 2 }));
        let at = match non_finite {
            Some(1) => rng.insert_non_finite(&mut x),
            Some(2) => rng.insert_non_finite(&mut weight),
            Some(_) => rng.insert_non_finite(&mut bias),
            None => 0,
        };
        let actual = host(conv2d(&case.layer(&weight, &bias, &device), tensor(&x, case.shape, &device)));
        let plane = actual.len() / b / case.out;
        // F(4 × 4) was off by up to 6e-6 over these cases, the other ways by less than 1e-6.
        let relative = if case.tiled() { 1e-5 } else { 1e-6 };
        let tolerances: Vec<f64> = (0..b * case.out)
            .map(|row| {
                let (image, o) = (row / case.out, row % case.out);
                let pixels = largest(&x[image * c * h * w..][..c * h * w]);
                let weight = &weight[o * case.weights() / case.out..][..case.weights() / case.out];
                let floor = (weight.len() as f64).sqrt() * (1.0 + pixels + largest(weight));
                let floor = floor * if case.tiled() { 100.0 } else { 2.0 } * DENORMAL;
                relative * (pixels * length(weight) + largest(&bias[o..=o])) + floor
            })
            .collect();
        let may = |i: usize| match non_finite {
            Some(1) => case.tiled() && case.in_tile(at, i),
            Some(2) => i / plane % case.out == at / (case.weights() / case.out),
            _ => false,
        };
        let what = format!(
            "convolution {number}, {case:?}, scales {x_scale:e} and {weight_scale:e}, non_finite {non_finite:?}"
        );
        check(&what, &actual, &case.reference(&x, &weight, &bias), |i| tolerances[i / plane], may);
    }
}

/// `<dy, J d> = <Jᵀ dy, d>` for a random d. Rounding errors are independent, so what they sum to is small beside the
/// lengths; an error in a single value of the gradient is not.
fn check_adjoint(what: &str, [of_result, change]: [&[f64]; 2], [gradient, direction]: [&[f64]; 2]) {
    let (expected, actual) = (dot(of_result, change), dot(gradient, direction));
    let sizes = [(of_result, change), (gradient, direction)];
    let size: f64 = sizes.iter().map(|(a, b)| length(a) * length(b) / (a.len() as f64).sqrt()).sum();
    assert!((actual - expected).abs() <= 1e-5 * size, "{what}: actual {actual}, expected {expected}, size {size}");
}

#[test]
fn gradients_of_convolutions_are_adjoint_to_f64_over_random_shapes() {
    let (device, mut rng) = (Device::flex().autodiff(), TestRng::new(2));
    for number in 0..200 {
        let case = ConvCase::random(&mut rng);
        let n = case.shape.iter().product();
        let [x, weight, bias] = [n, case.weights(), case.out].map(|n| rng.normal(n, 1.0));
        let layer = case.layer(&weight, &bias, &device);
        let leaf = tensor(&x, case.shape, &device).require_grad();
        let y = conv2d(&layer, leaf.clone());
        let of_y = rng.normal(y.shape().num_elements(), 1.0);
        let grads = (y.clone() * tensor(&of_y, y.dims(), &device)).sum().backward();
        let [dx, dw, db] = [n, case.weights(), case.out].map(|n| rng.normal(n, 1.0));
        let none = vec![0.0; case.out];
        let mut parts = vec![
            ("x", leaf.grad(&grads).map(host), case.reference(&dx, &weight, &none), dx),
            ("weight", layer.weight.val().grad(&grads).map(host), case.reference(&x, &dw, &none), dw),
        ];
        if let Some(bias) = &layer.bias {
            let change = case.reference(&vec![0.0; n], &weight, &db);
            parts.push(("bias", bias.val().grad(&grads).map(host), change, db));
        }
        for (name, gradient, change, direction) in parts {
            let what = format!("convolution {number}, {case:?}, gradient of {name}");
            let gradient = to_f64(&gradient.expect(&what));
            check_adjoint(&what, [&to_f64(&of_y), &change], [&gradient, &to_f64(&direction)]);
        }
    }
}

/// The largest value in units of √(σ² + ε): rounding the mean costs this many units in the last place.
fn spread(values: &[f32], epsilon: f64) -> f64 {
    let finite: Vec<f64> = to_f64(values).into_iter().filter(|v| v.is_finite()).collect();
    let n = finite.len().max(1) as f64;
    let mean = finite.iter().sum::<f64>() / n;
    let variance = finite.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
    largest(values) / (variance + epsilon).sqrt()
}

#[test]
fn group_norms_agree_with_f64_over_random_shapes() {
    let (device, mut rng) = (Device::flex(), TestRng::new(3));
    for number in 0..300 {
        let (groups, rows) = (rng.size(9), rng.size(9));
        let (film, silu) = rng.choose(&[(false, false), (false, true), (true, true)]);
        let shape = [rng.size(3), groups * rows, rng.side(40), rng.side(37)];
        let [b, c, h, w] = shape;
        let mut case = GroupCase::new(shape, groups, film, silu);
        let scale = rng.choose(&SCALES);
        case.x = rng.normal(b * c * h * w, scale);
        let non_finite = rng.one_in(3).then(|| rng.size(if film { 5 } else { 3 }));
        let inputs = [&mut case.x, &mut case.gamma, &mut case.beta, &mut case.scale, &mut case.shift];
        if let Some(input) = non_finite {
            rng.insert_non_finite(inputs[input - 1]);
        }
        let x = tensor(&case.x, shape, &device);
        let shared = rng.one_in(2).then(|| x.clone()); // else the result may take its place
        let [scales, shifts] = [&case.scale, &case.shift].map(|v| tensor(v, [b, c], &device));
        let actual = host(case.run(&case.layer(&device), x, scales, shifts));
        drop(shared);
        let [x, gamma, beta, scales, shifts] =
            [&case.x, &case.gamma, &case.beta, &case.scale, &case.shift].map(|v| to_f64(v));
        let expected = case.reference([&x, &gamma, &beta, &scales, &shifts]);
        let spreads: Vec<f64> = case.x.chunks(rows * h * w).map(|group| spread(group, 1e-5)).collect();
        let tolerance = |i: usize| {
            let row = i / (h * w);
            let (film, shift) = if film { (1.0 + scales[row].abs(), shifts[row].abs()) } else { (1.0, 0.0) };
            let affine = |units: f64| (gamma[row % c].abs() * units + beta[row % c].abs()) * film + shift;
            1e-6 * affine(spreads[row / rows]) + EXP_CUT
        };
        let what =
            format!("group norm {number}, {shape:?}, {groups} groups, scale {scale:e}, non_finite {non_finite:?}");
        check(&what, &actual, &expected, tolerance, |_| false);
    }
}

#[test]
fn layer_norms_agree_with_f64_over_random_shapes() {
    let (device, mut rng) = (Device::flex(), TestRng::new(4));
    for number in 0..300 {
        let (rows, d, scale) = (rng.side(300), rng.channels() * rng.choose(&[1, 1, 9]), rng.choose(&SCALES));
        let mut inputs = [rng.normal(rows * d, scale), rng.normal(d, 1.0), rng.normal(d, 1.0)];
        let non_finite = rng.one_in(3).then(|| rng.size(3));
        if let Some(input) = non_finite {
            rng.insert_non_finite(&mut inputs[input - 1]);
        }
        let mut layer = LayerNormConfig::new(d).with_epsilon(1e-3).init(&device);
        layer.gamma = Param::from_tensor(tensor(&inputs[1], [d], &device));
        layer.beta = Param::from_tensor(tensor(&inputs[2], [d], &device));
        let x = tensor(&inputs[0], [rows, d], &device);
        let shared = rng.one_in(2).then(|| x.clone());
        let actual = host(layer_norm(&layer, x));
        drop(shared);
        let [x, gamma, beta] = inputs.each_ref().map(|v| to_f64(v));
        let spreads: Vec<f64> = inputs[0].chunks(d).map(|row| spread(row, 1e-3)).collect();
        let tolerance = |i: usize| 1e-6 * (gamma[i % d].abs() * spreads[i / d] + beta[i % d].abs()) + DENORMAL;
        let what = format!("layer norm {number}, [{rows}, {d}], scale {scale:e}, non_finite {non_finite:?}");
        check(&what, &actual, &layer_norm_f64(&x, &gamma, &beta), tolerance, |_| false);
    }
}

#[test]
fn activations_agree_with_f64_over_random_values() {
    let (device, mut rng) = (Device::flex(), TestRng::new(5));
    for number in 0..300 {
        let (n, scale) =
            (rng.choose(&[1, 8, 300, 300, 40_000]), rng.choose(&[10.0, 1.0, 1e-3, 1e3, 1e-40, 1e18, 1e30]));
        let n = rng.size(n);
        let mut x = rng.normal(n, scale);
        if rng.one_in(3) {
            rng.insert_non_finite(&mut x);
        }
        for (name, activate, reference) in activations() {
            let expected = x.iter().map(|x| match *x {
                // The limit, where the formula multiplies infinity by 0.
                f32::NEG_INFINITY if name == "gelu" => 0.0,
                x => reference(f64::from(x)),
            });
            let expected: Vec<f64> = expected.collect();
            let input = tensor(&x, [n], &device);
            let shared = rng.one_in(2).then(|| input.clone());
            let actual = host(activate(input));
            drop(shared);
            // Rounding the exponent, which is at most 88 where the result is not cut, has an error proportional to it.
            let exponent = |x: f64| if name == "gelu" { 0.5 * x * x + 3.0 } else { 1.702 * x.abs() }.min(90.0);
            // The negative side of GELU is off by at most 2e-8, not relatively.
            let cut = if name == "gelu" { 2e-8 } else { EXP_CUT };
            let tolerance = |i: usize| (6e-7 + 1.2e-7 * exponent(f64::from(x[i]))) * expected[i].abs() + cut;
            check(&format!("{name} {number}, {n} values, scale {scale:e}"), &actual, &expected, tolerance, |_| false);
        }
    }
}

#[test]
fn linear_maps_agree_with_f64_over_random_shapes() {
    let (device, mut rng) = (Device::flex(), TestRng::new(6));
    for number in 0..300 {
        let (b, s, from, to) = (rng.size(3), rng.side(40), rng.channels(), rng.channels());
        let [x_scale, weight_scale] = rng.two_scales();
        let of_bias = x_scale * weight_scale;
        let mut inputs =
            [rng.normal(b * s * from, x_scale), rng.normal(to * from, weight_scale), rng.normal(to, of_bias)];
        let non_finite = rng.one_in(3).then(|| rng.size(3));
        if let Some(input) = non_finite {
            rng.insert_non_finite(&mut inputs[input - 1]);
        }
        let [x, weight, bias] = &inputs; // weight [to, from]
        let mut layer = LinearConfig::new(from, to).init(&device);
        layer.weight = Param::from_tensor(tensor(weight, [to, from], &device).transpose());
        layer.bias = Some(Param::from_tensor(tensor(bias, [to], &device)));
        let actual = host(linear(&layer, tensor(x, [b, s, from], &device)));
        // Rows are images of one pixel.
        let point = Window { k: 1, stride: 1, padding: [0; 4] };
        let expected = conv_f64(&to_f64(x), &to_f64(weight), &to_f64(bias), [b * s, from, 1, 1], point);
        let tolerance = |i: usize| {
            let (row, weight) = (largest(&x[i / to * from..][..from]), &weight[i % to * from..][..from]);
            let floor = (from as f64).sqrt() * 2.0 * DENORMAL;
            1e-6 * (row * length(weight) + largest(&bias[i % to..=i % to])) + floor
        };
        let what =
            format!("linear {number}, {from} to {to}, {x_scale:e} and {weight_scale:e}, non_finite {non_finite:?}");
        check(&what, &actual, &expected, tolerance, |_| false);
    }
}
