//! Resizing and blurring: one matrix per axis, `x -> M_h · x · M_wᵀ` for every channel.

use burn::prelude::*;

/// Coefficient of Keys' cubic convolution kernel (1981), as Pillow and PyTorch's antialiased resizing choose it.
const CUBIC_A: f64 = -0.5;

/// Resizes with the antialiased cubic filter: equal to Pillow's `BICUBIC` and to PyTorch's
/// `interpolate(mode="bicubic", align_corners=False, antialias=True)`. Going down, the kernel widens with the scale.
/// Values may leave the input's range by a little, at edges.
///
/// # Shapes
/// - `x`: `[B, C, H, W]`, values in any range
/// - output: `[B, C, size[0], size[1]]`
///
/// # Panics
/// If a side of the input or of the output is zero.
pub fn resize_bicubic(x: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
    let [_, _, h, w] = x.dims();
    assert!(
        h > 0 && w > 0 && size[0] > 0 && size[1] > 0,
        "cannot resize [{h}, {w}] to {size:?}: sides must not be empty"
    );
    let rows = (h != size[0]).then(|| bicubic_weights(h, size[0]));
    let columns = (w != size[1]).then(|| bicubic_weights(w, size[1]));
    apply(x, rows, columns)
}

/// Shrinks by a whole factor: every output pixel is the mean of `factor` × `factor` input pixels.
///
/// # Shapes
/// - `x`: `[B, C, H, W]`
/// - output: `[B, C, H / factor, W / factor]`
///
/// # Panics
/// If `factor` does not divide both sides.
pub fn resize_area(x: Tensor<4>, factor: usize) -> Tensor<4> {
    let [b, c, h, w] = x.dims();
    let fits = factor > 0 && h % factor == 0 && w % factor == 0;
    assert!(fits, "a factor of {factor} does not divide the sides [{h}, {w}]");
    let x = x.reshape([b * c * h, w / factor, factor]).mean_dim(2); // [B*C*H, W/f, 1]
    let x = x.reshape([b * c * h / factor, factor, w / factor]).mean_dim(1); // [B*C*H/f, 1, W/f]
    x.reshape([b, c, h / factor, w / factor])
}

/// Blurs with a Gaussian of `sigma` pixels cut off at `kernel` taps; the image is mirrored at its edges (the edge pixel
/// itself is not repeated). A `sigma` of zero changes nothing. The decoders' upsamplers are trained on low-resolution
/// images blurred so (Ramesh et al. 2022, appendix C: kernel 3, sigma 0.6).
///
/// # Shapes
/// - `x`, output: `[B, C, H, W]`
///
/// # Panics
/// If `kernel` is even, or `sigma` is negative or not finite.
pub fn gaussian_blur(x: Tensor<4>, kernel: usize, sigma: f64) -> Tensor<4> {
    assert!(kernel % 2 == 1, "a kernel of {kernel} taps has no middle: it must be odd");
    assert!(sigma >= 0.0 && sigma.is_finite(), "sigma = {sigma}: it must be finite and not negative");
    if sigma == 0.0 || kernel == 1 {
        return x;
    }
    let [_, _, h, w] = x.dims();
    apply(x, Some(blur_weights(h, kernel, sigma)), Some(blur_weights(w, kernel, sigma)))
}

/// A matrix `[out, in]` in row-major order, applied along one axis.
struct Weights {
    values: Vec<f32>,
    n_out: usize,
    n_in: usize,
}

impl Weights {
    /// Fills the matrix row by row; `row` adds to the weights of one output.
    fn new(n_in: usize, n_out: usize, row: impl Fn(usize, &mut [f64])) -> Self {
        let mut values = Vec::with_capacity(n_out * n_in);
        let mut weights = vec![0.0; n_in];
        for i in 0..n_out {
            weights.fill(0.0);
            row(i, &mut weights);
            let sum: f64 = weights.iter().sum();
            values.extend(weights.iter().map(|w| (w / sum) as f32));
        }
        Self { values, n_out, n_in }
    }

    /// `[in, out]`, on the device and in the type of `x`.
    fn transposed(self, x: &Tensor<4>) -> Tensor<2> {
        let data = TensorData::new(self.values, [self.n_out, self.n_in]);
        Tensor::<2>::from_data(data, (&x.device(), x.dtype())).transpose()
    }
}

/// Multiplies every row of pixels by `columns` and every column by `rows`; `None` leaves an axis as it is.
fn apply(x: Tensor<4>, rows: Option<Weights>, columns: Option<Weights>) -> Tensor<4> {
    let x = match columns {
        Some(weights) => along_last(x, weights),
        None => x,
    };
    match rows {
        Some(weights) => along_last(x.swap_dims(2, 3), weights).swap_dims(2, 3),
        None => x,
    }
}

fn along_last(x: Tensor<4>, weights: Weights) -> Tensor<4> {
    let [b, c, h, w] = x.dims();
    let n_out = weights.n_out;
    let weights = weights.transposed(&x);
    x.reshape([b * c * h, w]).matmul(weights).reshape([b, c, h, n_out])
}

/// The cubic kernel of width four, sampled at the input pixels around each output pixel's centre; what falls beyond the
/// edge is left out and the rest normalised.
fn bicubic_weights(n_in: usize, n_out: usize) -> Weights {
    let scale = n_in as f64 / n_out as f64;
    let stretch = scale.max(1.0);
    let support = 2.0 * stretch;
    Weights::new(n_in, n_out, |i, row| {
        let center = (i as f64 + 0.5) * scale;
        let from = ((center - support + 0.5).max(0.0)) as usize;
        let to = ((center + support + 0.5) as usize).min(n_in);
        for (j, weight) in row.iter_mut().enumerate().take(to).skip(from) {
            *weight = cubic((j as f64 + 0.5 - center) / stretch);
        }
    })
}

/// Keys' kernel: 1 at 0, 0 at ±1 and from ±2 on.
fn cubic(x: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        ((CUBIC_A + 2.0) * x - (CUBIC_A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((CUBIC_A * x - 5.0 * CUBIC_A) * x + 8.0 * CUBIC_A) * x - 4.0 * CUBIC_A
    } else {
        0.0
    }
}

fn blur_weights(n: usize, kernel: usize, sigma: f64) -> Weights {
    let radius = (kernel / 2) as isize;
    Weights::new(n, n, |i, row| {
        for offset in -radius..=radius {
            let distance = offset as f64 / sigma;
            row[mirrored(i as isize + offset, n)] += (-0.5 * distance * distance).exp();
        }
    })
}

/// Index of the pixel that stands at `i` when the image is mirrored about its first and last pixel again and again.
fn mirrored(i: isize, n: usize) -> usize {
    if n == 1 {
        return 0;
    }
    let period = 2 * (n as isize - 1);
    let i = i.rem_euclid(period);
    i.min(period - i) as usize
}

#[cfg(test)]
mod tests {
    use burn::tensor::Tolerance;

    use super::*;

    fn ramp(shape: [usize; 4], device: &Device) -> Tensor<4> {
        let n: usize = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|i| ((i * 37 % 101) as f32) / 50.0 - 1.0).collect();
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
        x.try_into_vec_as().unwrap()
    }

    #[test]
    fn the_same_size_changes_nothing() {
        let x = ramp([1, 2, 5, 7], &Device::flex());
        assert_eq!(values(resize_bicubic(x.clone(), [5, 7])), values(x));
    }

    #[test]
    fn a_constant_stays_constant_at_any_size() {
        let x = Tensor::<4>::full([1, 3, 13, 8], 0.37, &Device::flex());
        for size in [[1, 1], [5, 3], [13, 16], [64, 9], [26, 8]] {
            let y = resize_bicubic(x.clone(), size);
            assert_eq!(y.dims(), [1, 3, size[0], size[1]]);
            assert!(values(y).iter().all(|v| (v - 0.37).abs() < 1e-6));
        }
        assert!(values(gaussian_blur(x, 3, 0.6)).iter().all(|v| (v - 0.37).abs() < 1e-6));
    }

    /// A straight line is reproduced by cubic interpolation away from the edges.
    #[test]
    fn a_line_stays_a_line_inside() {
        let line: Vec<f32> = (0..16).map(|i| (i as f32 + 0.5) / 16.0).collect();
        let x = Tensor::<4>::from_data(TensorData::new(line, [1, 1, 1, 16]), &Device::flex());
        for n in [8, 32, 40] {
            let y = values(resize_bicubic(x.clone(), [1, n]));
            let margin = (2 * n).div_ceil(16).max(2);
            for (i, v) in y.iter().enumerate().take(n - margin).skip(margin) {
                assert!((v - (i as f32 + 0.5) / n as f32).abs() < 1e-6, "{n}: {i} {v}");
            }
        }
    }

    /// Halving a unit impulse spreads the kernel sampled at half steps: k(±1/4) and k(±3/4), k(±5/4), k(±7/4), over 2.
    #[test]
    fn halving_samples_the_widened_kernel() {
        let mut impulse = vec![0.0f32; 16];
        impulse[8] = 1.0;
        let x = Tensor::<4>::from_data(TensorData::new(impulse, [1, 1, 1, 16]), &Device::flex());
        let y = values(resize_bicubic(x, [1, 8]));
        let expected = [0.0, 0.0, 0.0, cubic(0.75) / 2.0, cubic(0.25) / 2.0, cubic(1.25) / 2.0, 0.0, 0.0];
        // Outputs 2 and 6 lie 3.5 and -4.5 input pixels away: k(7/4)/2 and nothing.
        for (i, (v, e)) in y.iter().zip(expected).enumerate() {
            let e = if i == 2 { cubic(1.75) / 2.0 } else { e };
            assert!((f64::from(*v) - e).abs() < 1e-7, "{i}: {v} {e}");
        }
    }

    #[test]
    fn area_is_the_mean_and_keeps_the_total_mean() {
        let device = Device::flex();
        let x = ramp([2, 3, 6, 8], &device);
        let y = resize_area(x.clone(), 2);
        assert_eq!(y.dims(), [2, 3, 3, 4]);
        let block: f32 = values(x.clone().slice(s![1..2, 2..3, 2..4, 4..6])).iter().sum::<f32>() / 4.0;
        assert!((values(y.clone().slice(s![1..2, 2..3, 1..2, 2..3]))[0] - block).abs() < 1e-6);
        assert!((values(y.mean())[0] - values(x.mean())[0]).abs() < 1e-6);
    }

    #[test]
    #[should_panic(expected = "factor of 4 does not divide")]
    fn area_needs_a_dividing_factor() {
        resize_area(Tensor::zeros([1, 1, 6, 8], &Device::flex()), 4);
    }

    #[test]
    #[should_panic(expected = "sides must not be empty")]
    fn an_empty_size_is_a_bug() {
        resize_bicubic(Tensor::zeros([1, 1, 6, 8], &Device::flex()), [0, 4]);
    }

    #[test]
    fn blur_has_the_closed_form_and_mirrors_the_edges() {
        let x = Tensor::<4>::from_data(TensorData::new(vec![0.0f32, 1.0, 0.0, 0.0], [1, 1, 1, 4]), &Device::flex());
        let side = (-0.5 / 0.36f64).exp();
        let total = 1.0 + 2.0 * side;
        // The first pixel sees its right neighbour twice.
        let expected = [2.0 * side, 1.0, side, 0.0].map(|w| (w / total) as f32);
        for (v, e) in values(gaussian_blur(x.clone(), 3, 0.6)).iter().zip(expected) {
            assert!((v - e).abs() < 1e-6, "{v} {e}");
        }
        assert_eq!(values(gaussian_blur(x.clone(), 3, 0.0)), values(x.clone()));
        // A kernel wider than the image folds back instead of leaving it.
        assert!((values(gaussian_blur(x, 11, 3.0)).iter().sum::<f32>()).is_finite());
        assert_eq!([-3, -1, 0, 3, 4, 6, 7].map(|i| mirrored(i, 4)), [3, 1, 0, 3, 2, 0, 1]);
    }

    /// Resizing is linear, so the gradient of a weighted sum is the transposed map: <R x, y> = <x, Rᵀ y>.
    #[test]
    fn gradients_flow_through_resize_and_blur() {
        let device = Device::flex().autodiff();
        let x = ramp([1, 2, 6, 6], &device).require_grad();
        let y = gaussian_blur(resize_bicubic(x.clone(), [9, 4]), 3, 0.6);
        let weights = ramp([1, 2, 9, 4], &device);
        let loss = (y * weights).sum();
        let gradient = x.grad(&loss.backward()).unwrap();
        let dot = (gradient * x.clone().inner()).sum();
        loss.inner().into_data().assert_approx_eq::<f32>(&dot.into_data(), Tolerance::rel_abs(1e-5, 1e-5));
    }
}
