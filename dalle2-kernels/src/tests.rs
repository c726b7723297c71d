//! Every operation against a plain f64 implementation, and its gradients against central differences of that one.

use burn::module::Param;
use burn::nn::{EmbeddingConfig, GroupNormConfig, Linear, LinearConfig, PaddingConfig2d, conv::Conv2dConfig};
use burn::prelude::*;
use burn::tensor::TensorData;

use super::reference::*;
use super::*;

/// Gradient of `f` at `x` by central differences.
fn differences(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let (at, h) = (x[i], 1e-5 * x[i].abs().max(1.0));
            x[i] = at + h;
            let above = f(&x);
            x[i] = at - h;
            let below = f(&x);
            x[i] = at;
            (above - below) / (2.0 * h)
        })
        .collect()
}

#[test]
fn activations_agree_with_f64() {
    let device = Device::flex();
    for n in [1, 7, 16, 257] {
        let mut x = normal(n as u64, n);
        x.iter_mut().for_each(|x| *x *= 3.0);
        for (name, activate, reference) in activations() {
            let expected: Vec<f64> = x.iter().map(|x| reference(f64::from(*x))).collect();
            assert_close(name, &host(activate(tensor(&x, [n], &device))), &expected, 1e-6, 1e-6);
        }
    }
}

#[test]
fn activations_survive_extreme_values() {
    let device = Device::flex();
    let x = [0.0, -0.0, 1e-40, -1e-40, 88.0, -88.0, 104.0, -104.0, 1e30, -1e30, f32::MAX, f32::MIN];
    for (name, activate, _) in activations() {
        let y = host(activate(tensor(&x, [x.len()], &device)));
        let expected: Vec<f64> = x.iter().map(|x| f64::from(x.max(0.0))).collect();
        assert_close(name, &y, &expected, 1e-6, 1e-30);
        let y = host(activate(tensor(&[f32::NAN, 1.0], [2], &device)));
        assert!(y[0].is_nan() && y[1].is_finite(), "{name}: NaN stays NaN and stays alone, actual {y:?}");
    }
}

#[test]
fn activation_gradients_agree_with_differences() {
    let device = Device::flex().autodiff();
    let n = 61;
    let mut x = normal(5, n);
    x.iter_mut().for_each(|x| *x *= 3.0);
    let weights = normal(6, n);
    for (name, activate, reference) in activations() {
        let leaf = tensor(&x, [n], &device).require_grad();
        let grads = (activate(leaf.clone()) * tensor(&weights, [n], &device)).sum().backward();
        let expected =
            differences(&to_f64(&x), |x| dot(&x.iter().map(|x| reference(*x)).collect::<Vec<_>>(), &to_f64(&weights)));
        assert_close(name, &host(leaf.grad(&grads).unwrap()), &expected, 2e-6, 2e-6);
    }
}

fn group_cases() -> Vec<GroupCase> {
    let mut cases = Vec::new();
    for (shape, groups) in
        [([2, 8, 3, 5], 4), ([3, 6, 1, 1], 2), ([1, 5, 4, 4], 5), ([2, 12, 7, 1], 3), ([1, 4, 16, 17], 1)]
    {
        cases.extend(
            [(false, false), (false, true), (true, true)].map(|(film, silu)| GroupCase::new(shape, groups, film, silu)),
        );
    }
    cases
}

#[test]
fn group_norms_agree_with_f64() {
    let device = Device::flex();
    for case in group_cases() {
        let [b, c, _, _] = case.shape;
        let y = case.run(
            &case.layer(&device),
            tensor(&case.x, case.shape, &device),
            tensor(&case.scale, [b, c], &device),
            tensor(&case.shift, [b, c], &device),
        );
        let [x, gamma, beta, scale, shift] =
            [&case.x, &case.gamma, &case.beta, &case.scale, &case.shift].map(|v| to_f64(v));
        let expected = case.reference([&x, &gamma, &beta, &scale, &shift]);
        assert_close(&format!("{:?}", case.shape), &host(y), &expected, 1e-5, 2e-5);
    }
}

#[test]
fn group_norm_gradients_agree_with_differences() {
    let device = Device::flex().autodiff();
    for case in group_cases() {
        let [b, c, h, w] = case.shape;
        let layer = case.layer(&device);
        let x = tensor(&case.x, case.shape, &device).require_grad();
        let scale = tensor(&case.scale, [b, c], &device).require_grad();
        let shift = tensor(&case.shift, [b, c], &device).require_grad();
        let weights = normal(9, b * c * h * w);
        let y = case.run(&layer, x.clone(), scale.clone(), shift.clone());
        let grads = (y * tensor(&weights, case.shape, &device)).sum().backward();
        let gamma = layer.gamma.as_ref().unwrap().val();
        let beta = layer.beta.as_ref().unwrap().val();
        let actual = [
            x.grad(&grads).map(host),
            gamma.grad(&grads).map(host),
            beta.grad(&grads).map(host),
            scale.grad(&grads).map(host),
            shift.grad(&grads).map(host),
        ];
        let inputs = [&case.x, &case.gamma, &case.beta, &case.scale, &case.shift].map(|v| to_f64(v));
        let names = ["x", "gamma", "beta", "scale", "shift"];
        for (i, actual) in actual.into_iter().enumerate().take(if case.film { 5 } else { 3 }) {
            let expected = differences(&inputs[i], |varied| {
                let mut p = inputs.each_ref().map(|v| v.as_slice());
                p[i] = varied;
                dot(&case.reference(p), &to_f64(&weights))
            });
            let what = format!("{:?} film {} silu {} d/d{}", case.shape, case.film, case.silu, names[i]);
            assert_close(&what, &actual.expect(&what), &expected, 1e-4, 1e-4);
        }
    }
}

#[test]
fn layer_norm_and_its_gradients_agree_with_f64() {
    let device = Device::flex().autodiff();
    for (rows, d) in [(1, 1), (3, 7), (5, 16), (4, 33), (300, 40)] {
        // Not the default 1e-5: the value of the layer must be used.
        let mut layer = LayerNormConfig::new(d).with_epsilon(1e-3).init(&device);
        layer.gamma = Param::from_tensor(tensor(&normal(2, d), [d], &device));
        layer.beta = Param::from_tensor(tensor(&normal(3, d), [d], &device));
        let inputs = [normal(1, rows * d), normal(2, d), normal(3, d)].map(|v| to_f64(&v));
        let reference = |p: [&[f64]; 3]| layer_norm_f64(p[0], p[1], p[2]);
        let x = tensor(&normal(1, rows * d), [rows, d], &device).require_grad();
        let y = layer_norm(&layer, x.clone());
        let what = format!("layer_norm [{rows}, {d}]");
        assert_close(&what, &host(y.clone()), &reference(inputs.each_ref().map(|v| v.as_slice())), 1e-5, 1e-5);

        let weights = normal(4, rows * d);
        let grads = (y * tensor(&weights, [rows, d], &device)).sum().backward();
        let (gamma, beta) = (layer.gamma.val(), layer.beta.val());
        let actual = [x.grad(&grads).map(host), gamma.grad(&grads).map(host), beta.grad(&grads).map(host)];
        for (i, actual) in actual.into_iter().enumerate().skip(usize::from(rows > 100)) {
            let expected = differences(&inputs[i], |varied| {
                let mut p = inputs.each_ref().map(|v| v.as_slice());
                p[i] = varied;
                dot(&reference(p), &to_f64(&weights))
            });
            assert_close(&format!("{what}, gradient {i}"), &actual.unwrap(), &expected, 1e-4, 1e-4);
        }
    }
}

#[test]
fn linear_equals_burns_layer() {
    let device = Device::flex();
    let layer = LinearConfig::new(5, 3).init(&device);
    let x = tensor(&normal(1, 2 * 4 * 5), [2, 4, 5], &device);
    let expected: Vec<f64> = to_f64(&host(layer.forward(x.clone())));
    let y = linear(&layer, x);
    assert_eq!(y.dims(), [2, 4, 3]);
    assert_close("linear", &host(y), &expected, 1e-6, 1e-6);
}

#[test]
fn linear_gradients_agree_with_f64() {
    let device = Device::flex().autodiff();
    for (rows, from, to) in [(3, 5, 4), (16, 1, 1), (40, 33, 7), (300, 17, 70)] {
        for transposed in [false, true] {
            let (x, grad) = (normal(1, rows * from), normal(2, rows * to));
            let weight = normal(3, from * to);
            let layer = LinearConfig::new(from, to).init(&device);
            let input = tensor(&x, [rows, from], &device).require_grad();
            // The same values by rows, or by columns as in a checkpoint of PyTorch.
            let at = |i: usize, j: usize| weight[if transposed { j * from + i } else { i * to + j }];
            let layer_weight = if transposed {
                tensor(&weight, [to, from], &device).transpose()
            } else {
                tensor(&weight, [from, to], &device)
            };
            let layer = Linear { weight: Param::from_tensor(layer_weight).set_require_grad(true), ..layer };
            let y = linear(&layer, input.clone());
            let grads = (y * tensor(&grad, [rows, to], &device)).sum().backward();
            let sum = |n: usize, f: &dyn Fn(usize) -> f32| (0..n).map(|i| f64::from(f(i))).sum::<f64>();
            let x_scale = (0..rows * from).map(|i| sum(to, &|j| grad[i / from * to + j] * at(i % from, j)));
            let weight_scale =
                (0..from * to).map(|i| sum(rows, &|row| x[row * from + i / to] * grad[row * to + i % to]));
            let of_bias = (0..to).map(|j| sum(rows, &|row| grad[row * to + j]));
            let what = format!("linear {rows} x {from} x {to}, transposed {transposed}");
            let check = |of: &str, actual: Vec<f32>, expected: Vec<f64>| {
                assert_close(&format!("{what}, {of}"), &actual, &expected, 1e-4, 1e-4);
            };
            check("x", host(input.grad(&grads).unwrap()), x_scale.collect());
            check("weight", host(layer.weight.val().grad(&grads).unwrap()), weight_scale.collect());
            check("bias", host(layer.bias.as_ref().unwrap().val().grad(&grads).unwrap()), of_bias.collect());
        }
    }
}

#[test]
fn embeddings_and_their_gradient_are_exact() {
    for device in [Device::flex(), Device::flex().autodiff()] {
        let layer = EmbeddingConfig::new(5, 3).init(&device);
        // One id twice, one not at all.
        let ids = Tensor::<2, Int>::from_data([[4, 1, 0], [1, 3, 1]], &device);
        let y = embedding(&layer, ids.clone());
        assert_eq!(host(y.clone()), host(layer.forward(ids)));
        if device.is_autodiff() {
            let factors: Vec<f32> = (0..18).map(|i| i as f32).collect();
            let grads = (y * tensor(&factors, [2, 3, 3], &device)).sum().backward();
            let actual = host(layer.weight.val().grad(&grads).unwrap());
            let expected: [[f32; 3]; 5] =
                [[6.0, 7.0, 8.0], [27.0, 30.0, 33.0], [0.0; 3], [12.0, 13.0, 14.0], [0.0, 1.0, 2.0]];
            assert_eq!(actual, expected.as_flattened());
        }
    }
}

#[test]
fn gradients_of_large_tables_are_sums_in_order() {
    let device = Device::flex().autodiff();
    // Several tasks of rows; some rows are wanted often, most never.
    for (rows, width) in [(9001, 7), (2 * 16 * 1024, 1), (3, 20_000)] {
        let layer = EmbeddingConfig::new(rows, width).init(&device);
        let ids: Vec<usize> = (0..60).map(|i| if i % 3 == 0 { rows - 1 - i % 2 } else { i * 7919 % rows }).collect();
        let of_rows = normal(3, ids.len() * width);
        let mut expected = vec![0.0; rows * width];
        for (id, row) in ids.iter().zip(of_rows.chunks_exact(width)) {
            expected[id * width..][..width].iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        let ids: Vec<i64> = ids.into_iter().map(|id| id as i64).collect();
        let y = embedding(&layer, Tensor::from_data(TensorData::new(ids, [6, 10]), &device));
        let grads = (y * tensor(&of_rows, [6, 10, width], &device)).sum().backward();
        assert_eq!(host(layer.weight.val().grad(&grads).unwrap()), expected, "{rows} x {width}");
    }
}

#[test]
#[should_panic(expected = "must be 5")]
fn linear_refuses_another_width() {
    let device = Device::flex();
    linear(&LinearConfig::new(5, 3).init(&device), Tensor::<2>::zeros([2, 4], &device));
}

#[test]
fn convolutions_and_their_gradients_agree_with_f64() {
    let device = Device::flex().autodiff();
    for (shape, out, k, stride) in [
        ([2, 3, 5, 4], 5, 3, 1),
        ([1, 4, 6, 6], 3, 3, 2),
        ([2, 3, 5, 5], 4, 3, 2),
        ([2, 5, 3, 7], 2, 1, 1),
        ([1, 2, 1, 1], 3, 3, 1),
    ] {
        let [b, c, h, w] = shape;
        let layer = Conv2dConfig::new([c, out], [k, k])
            .with_stride([stride, stride])
            .with_padding(PaddingConfig2d::Explicit(k / 2, k / 2, k / 2, k / 2))
            .init(&device);
        let (weight, bias) = (layer.weight.val(), layer.bias.as_ref().unwrap().val());
        let inputs = [normal(1, b * c * h * w), host(weight.clone()), host(bias.clone())].map(|v| to_f64(&v));
        let x = tensor(&normal(1, b * c * h * w), shape, &device).require_grad();
        let y = conv2d(&layer, x.clone());
        let what = format!("{shape:?} to {out}, kernel {k}, stride {stride}");
        let reference = |p: [&[f64]; 3]| conv_f64(p[0], p[1], p[2], shape, Window::centred(k, stride));
        assert_close(&what, &host(y.clone()), &reference(inputs.each_ref().map(|v| v.as_slice())), 1e-5, 1e-5);

        let weights = normal(3, y.shape().num_elements());
        let grads = (y.clone() * tensor(&weights, y.dims(), &device)).sum().backward();
        let actual = [x.grad(&grads).map(host), weight.grad(&grads).map(host), bias.grad(&grads).map(host)];
        for (i, actual) in actual.into_iter().enumerate() {
            let expected = differences(&inputs[i], |varied| {
                let mut p = inputs.each_ref().map(|v| v.as_slice());
                p[i] = varied;
                dot(&reference(p), &to_f64(&weights))
            });
            assert_close(&format!("{what}, gradient {i}"), &actual.unwrap(), &expected, 1e-4, 1e-4);
        }
    }
}

/// Shapes of several blocks, where f64 differences would take too long: Burn's own operations are the reference.
#[test]
fn larger_convolutions_agree_with_burns_operation() {
    use PaddingConfig2d::{Explicit, Same, Valid};
    let device = Device::flex().autodiff();
    for (shape, out, kernel, stride, padding) in [
        ([5, 3, 25, 25], 4, [3, 3], [1, 1], Explicit(1, 1, 1, 1)),
        ([1, 3, 70, 50], 2, [3, 3], [1, 1], Same),
        ([2, 4, 100, 90], 3, [3, 3], [2, 2], Explicit(1, 1, 1, 1)),
        ([2, 3, 64, 64], 5, [4, 4], [4, 4], Valid),
        ([3, 2, 9, 7], 3, [5, 2], [1, 1], Same),
        ([3, 2, 9, 7], 3, [3, 3], [2, 2], Same),
        ([40, 6, 8, 8], 3, [1, 1], [1, 1], Valid),
        ([2, 2, 6, 6], 3, [2, 3], [1, 2], Explicit(2, 0, 1, 3)),
        ([2, 2, 3, 2], 2, [3, 5], [1, 1], Explicit(1, 2, 1, 2)),
        // From here on by Winograd's method: full and partial tiles, several blocks, other paddings.
        ([5, 24, 13, 10], 18, [3, 3], [1, 1], Explicit(1, 1, 1, 1)),
        ([40, 16, 16, 16], 17, [3, 3], [1, 1], Same),
        ([20, 16, 9, 11], 16, [3, 3], [1, 1], Valid),
        ([9, 33, 7, 7], 16, [3, 3], [1, 1], Explicit(2, 1, 0, 3)),
        // Tasks of 24 outputs and a last one of 18 or, for the gradient of the input, of 10; then of 32 and of 16.
        ([3, 130, 12, 12], 90, [3, 3], [1, 1], Explicit(1, 1, 1, 1)),
        ([2, 40, 20, 9], 208, [3, 3], [1, 1], Same),
        // Few tiles of 4 × 4 pixels, hence F(2 × 2): full, partial, over several images, over several panels.
        ([1, 24, 8, 8], 18, [3, 3], [1, 1], Explicit(1, 1, 1, 1)),
        ([3, 16, 7, 5], 20, [3, 3], [1, 1], Explicit(0, 2, 1, 0)),
        ([1, 70, 15, 11], 33, [3, 3], [1, 1], Same),
        // A panel begins with a tile that lies beyond the image.
        ([9, 16, 5, 5], 16, [3, 3], [1, 1], Explicit(0, 0, 7, 7)),
    ] {
        let [b, c, h, w] = shape;
        let layer = Conv2dConfig::new([c, out], kernel).with_stride(stride).with_padding(padding.clone()).init(&device);
        let (weight, bias) = (layer.weight.val(), layer.bias.as_ref().unwrap().val());
        let values = normal(1, b * c * h * w);
        let run = |f: &dyn Fn(Tensor<4>) -> Tensor<4>| {
            let x = tensor(&values, shape, &device).require_grad();
            let y = f(x.clone());
            let weights = normal(2, y.shape().num_elements());
            let grads = (y.clone() * tensor(&weights, y.dims(), &device)).sum().backward();
            let of = |grad: Option<Tensor<4>>| host(grad.unwrap());
            [host(y), of(x.grad(&grads)), of(weight.grad(&grads)), host(bias.grad(&grads).unwrap())]
        };
        let ours = run(&|x| conv2d(&layer, x));
        let burns = run(&|x| layer.forward(x));
        for (i, (ours, burns)) in ours.iter().zip(&burns).enumerate() {
            let size = burns.iter().fold(1.0f32, |max, v| max.max(v.abs()));
            let what = format!("{shape:?} kernel {kernel:?} stride {stride:?} {padding:?}, result {i}");
            assert_close(&what, ours, &to_f64(burns), 0.0, f64::from(size) * 2e-5);
        }
    }
}

/// With tiles of either size, at each pixel, with columns; even sides and odd ones.
#[test]
fn fused_resampling_and_residuals_equal_separate_operations() {
    let device = Device::flex();
    let all = [Resample::Keep, Resample::Down, Resample::Up];
    for (channels, [h, w], kernel, stride) in [
        ([17, 20], [16, 24], 3, 1),
        ([20, 17], [8, 6], 3, 1),
        ([5, 7], [6, 10], 1, 1),
        ([3, 4], [6, 8], 3, 1),
        ([3, 4], [8, 8], 3, 2),
        ([16, 16], [9, 7], 3, 1),
    ] {
        let padding = PaddingConfig2d::Explicit(kernel / 2, kernel / 2, kernel / 2, kernel / 2);
        let config = Conv2dConfig::new(channels, [kernel, kernel]).with_stride([stride, stride]).with_padding(padding);
        let layer = config.init(&device);
        for how in all {
            let shape = [2, channels[0], h, w];
            let x = tensor(&normal(1, shape.iter().product()), shape, &device);
            let expected = layer.forward(resample(x.clone(), how));
            let compare = |what: &str, actual: Tensor<4>, expected: Tensor<4>| {
                let what = format!("{what}, {channels:?}, {h} x {w}, kernel {kernel}, stride {stride}, {how:?}");
                assert_close(&what, &host(actual), &to_f64(&host(expected)), 0.0, 2e-5);
            };
            compare("resampled", conv2d_resampled(&layer, x.clone(), how), expected);
            let y = layer.forward(x.clone());
            let [b, c, h_out, w_out] = y.dims();
            let shape = match how {
                Resample::Keep => [b, c, h_out, w_out],
                Resample::Down => [b, c, 2 * h_out, 2 * w_out],
                Resample::Up if h_out % 2 == 1 || w_out % 2 == 1 => continue,
                Resample::Up => [b, c, h_out / 2, w_out / 2],
            };
            let values = normal(2, shape.iter().product());
            let residual = tensor(&values, shape, &device);
            let expected = resample(residual.clone(), how) + y;
            compare("onto", conv2d_add(&layer, x.clone(), residual.clone(), how), expected.clone());
            assert_eq!(host(residual), values, "a residual that someone else holds stays as it was");
            compare("onto its own", conv2d_add(&layer, x, tensor(&values, shape, &device), how), expected);
        }
    }
}

#[test]
fn residuals_have_gradients() {
    let device = Device::flex().autodiff();
    let config = Conv2dConfig::new([16, 16], [3, 3]).with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1));
    let conv = config.init(&device);
    let layer = LinearConfig::new(6, 10).init(&device);
    let gradients = |y: Tensor<2>, leaves: &[&Tensor<2>]| -> Vec<Vec<f32>> {
        let weights = normal(9, y.shape().num_elements());
        let grads = (y.clone() * tensor(&weights, y.dims(), &device)).sum().backward();
        let mut all = vec![host(y)];
        all.extend(leaves.iter().map(|leaf| host(leaf.grad(&grads).unwrap())));
        all.push(layer.weight.grad(&grads).map_or_else(Vec::new, host));
        all.push(conv.weight.grad(&grads).map_or_else(Vec::new, host));
        for bias in [layer.bias.as_ref(), conv.bias.as_ref()] {
            all.push(bias.unwrap().grad(&grads).map_or_else(Vec::new, host));
        }
        all
    };
    let compare = |what: &str, actual: Vec<Vec<f32>>, expected: Vec<Vec<f32>>| {
        for (actual, expected) in actual.iter().zip(expected) {
            assert_close(what, actual, &to_f64(&expected), 1e-5, 1e-4);
        }
    };
    let leaf = |seed, shape: [usize; 2]| tensor(&normal(seed, shape[0] * shape[1]), shape, &device).require_grad();

    let (x, residual) = (leaf(1, [5, 6]), leaf(2, [5, 10]));
    let leaves = [&x, &residual];
    let composed = gradients(residual.clone() + layer.forward(x.clone()), &leaves);
    compare("linear", gradients(linear_add(&layer, x.clone(), residual.clone()), &leaves), composed);

    // The residual is used twice, like the input of a residual block.
    for how in [Resample::Keep, Resample::Up, Resample::Down] {
        let side = match how {
            Resample::Keep => 8,
            Resample::Down => 16,
            Resample::Up => 4,
        };
        let (x, residual) = (leaf(3, [2, 16 * 64]), leaf(4, [2, 16 * side * side]));
        let leaves = [&x, &residual];
        let images = |x: &Tensor<2>, side: usize| x.clone().reshape([2, 16, side, side]);
        let sum = |y: Tensor<4>| y.reshape([2, 16 * 64]) + resample(images(&residual, side), how).reshape([2, 1024]);
        let composed = sum(resample(images(&residual, side), how) + conv.forward(images(&x, 8)));
        let composed = gradients(composed, &leaves);
        let folded = sum(conv2d_add(&conv, images(&x, 8), images(&residual, side), how));
        compare("convolution", gradients(folded, &leaves), composed);
    }
}

#[test]
#[should_panic(expected = "residual and result must have equal shapes")]
fn a_residual_of_another_size_is_refused() {
    let device = Device::flex();
    let layer = Conv2dConfig::new([2, 3], [1, 1]).init(&device);
    let x = tensor(&normal(1, 2 * 2 * 16), [2, 2, 4, 4], &device);
    conv2d_add(&layer, x, tensor(&normal(2, 3 * 16), [1, 3, 4, 4], &device), Resample::Keep);
}

#[test]
fn convolutions_compute_only_the_required_gradients() {
    let device = Device::flex().autodiff();
    let layer = Conv2dConfig::new([2, 3], [3, 3]).with_bias(false).init(&device);
    let x = tensor(&normal(1, 2 * 2 * 25), [2, 2, 5, 5], &device);
    let grads = conv2d(&layer, x.clone()).square().sum().backward();
    assert!(layer.weight.val().grad(&grads).is_some(), "the weights of a layer without bias are trained");
    let frozen = layer.clone().no_grad();
    let leaf = x.require_grad();
    let grads = conv2d(&frozen, leaf.clone()).square().sum().backward();
    assert!(leaf.grad(&grads).is_some(), "the input of a frozen layer has a gradient");
    assert!(frozen.weight.val().grad(&grads).is_none(), "frozen weights have none");
}

#[test]
fn nan_stays_in_its_group() {
    let device = Device::flex();
    let layer = GroupNormConfig::new(2, 4).init(&device);
    let mut x = normal(1, 2 * 4 * 9);
    x[0] = f32::NAN;
    let y = host(group_norm_silu(&layer, tensor(&x, [2, 4, 3, 3], &device)));
    assert!(y[..18].iter().all(|y| y.is_nan()), "the moments of the group with NaN are NaN");
    assert!(y[18..].iter().all(|y| y.is_finite()), "the other groups are untouched");
}

#[test]
fn other_dtypes_and_switched_off_kernels_are_composed() {
    let device = Device::flex();
    let layer = GroupNormConfig::new(2, 4).init(&device);
    let x = tensor(&normal(1, 2 * 4 * 9), [2, 4, 3, 3], &device);
    let f32s = host(group_norm_silu(&layer, x.clone()));
    let f16s = group_norm_silu(&layer, x.cast(burn::tensor::FloatDType::F16));
    assert_eq!(f16s.dtype(), burn::tensor::DType::F16);
    assert_close("f16", &host(f16s.cast(burn::tensor::FloatDType::F32)), &to_f64(&f32s), 5e-3, 5e-3);
}

#[test]
fn attention_and_its_gradients_agree_with_f64() {
    let device = Device::flex().autodiff();
    for dims in [[2, 2, 3, 5, 4], [1, 3, 4, 4, 2], [2, 1, 1, 1, 3], [1, 1, 5, 19, 8]] {
        let [b, heads, s_q, s_k, d] = dims;
        let sizes = [s_q, s_k, s_k].map(|s| b * heads * s * d);
        let inputs: [Vec<f32>; 3] = [0, 1, 2].map(|i| normal(i as u64, sizes[i]));
        // The first query of the last item has every key masked out.
        let mask: Vec<bool> =
            (0..b * s_q * s_k).map(|n| (n % 3 == 1 && s_k > 1) || (n / s_k == (b - 1) * s_q && s_q > 1)).collect();
        let mask_tensor = Tensor::<4, Bool>::from_data(TensorData::new(mask.clone(), [b, 1, s_q, s_k]), &device);
        let [q, k, v] =
            [0, 1, 2].map(|i| tensor(&inputs[i], [b, heads, [s_q, s_k, s_k][i], d], &device).require_grad());
        let y = attention(q.clone(), k.clone(), v.clone(), Some(mask_tensor));
        let wide = inputs.each_ref().map(|v| to_f64(v));
        let reference = |p: [&[f64]; 3]| attention_f64(p[0], p[1], p[2], &mask, dims);
        assert_close(
            &format!("{dims:?}"),
            &host(y.clone()),
            &reference(wide.each_ref().map(|v| v.as_slice())),
            1e-5,
            1e-5,
        );

        let weights = normal(7, sizes[0]);
        let grads = (y.clone() * tensor(&weights, y.dims(), &device)).sum().backward();
        for (i, actual) in [q.grad(&grads), k.grad(&grads), v.grad(&grads)].into_iter().enumerate() {
            let expected = differences(&wide[i], |varied| {
                let mut p = wide.each_ref().map(|v| v.as_slice());
                p[i] = varied;
                dot(&reference(p), &to_f64(&weights))
            });
            assert_close(&format!("{dims:?}, gradient {i}"), &host(actual.unwrap()), &expected, 1e-4, 1e-4);
        }
    }
}

#[test]
fn attention_survives_scores_beyond_the_exponential() {
    let device = Device::flex();
    let k = tensor(&[1.0, 0.0, -1.0, 0.5], [1, 1, 4, 1], &device);
    let v = tensor(&[1.0, 2.0, 3.0, 4.0], [1, 1, 4, 1], &device);
    for (q, expected) in [(1e30, 1.0), (-1e30, 3.0), (0.0, 2.5)] {
        let y = host(attention(tensor(&[q], [1, 1, 1, 1], &device), k.clone(), v.clone(), None));
        assert_close(&format!("q = {q}"), &y, &[expected], 1e-6, 0.0);
    }
    let nan = host(attention(tensor(&[f32::NAN], [1, 1, 1, 1], &device), k, v, None));
    assert!(nan[0].is_nan(), "NaN is not hidden, actual {nan:?}");
}

#[test]
fn l2_normalize_gives_unit_rows_and_keeps_zero() {
    let device = Device::flex().autodiff();
    let x = tensor(&[3.0, 4.0, 0.0, 0.0], [2, 2], &device).require_grad();
    let y = l2_normalize(x.clone());
    assert_close("rows", &host(y.clone()), &[0.6, 0.8, 0.0, 0.0], 1e-6, 1e-7);
    let grads = y.sum().backward();
    assert!(host(x.grad(&grads).unwrap()).iter().all(|g| g.is_finite()), "the gradient at zero is finite");
}
