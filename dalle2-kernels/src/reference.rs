//! Plain f64 implementations of the operations, and what the tests need to compare with them.

use burn::module::Param;
use burn::nn::{GroupNorm, GroupNormConfig};
use burn::prelude::*;
use burn::tensor::TensorData;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;
use statrs::function::erf::erfc;

use super::*;

/// Normal values that depend on the seed alone.
pub(crate) fn normal(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| StandardNormal.sample(&mut rng)).collect()
}

pub(crate) fn tensor<const D: usize>(values: &[f32], shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

pub(crate) fn host<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().try_to_vec::<f32>().unwrap()
}

pub(crate) fn to_f64(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

/// Asserts `|actual − expected| ≤ absolute + relative · |expected|` everywhere.
pub(crate) fn assert_close(what: &str, actual: &[f32], expected: &[f64], relative: f64, absolute: f64) {
    assert_eq!(actual.len(), expected.len(), "{what}: length");
    for (i, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        let error = (f64::from(*actual) - expected).abs();
        assert!(error <= absolute + relative * expected.abs(), "{what}[{i}]: actual {actual}, expected {expected}");
    }
}

pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn sigmoid_f64(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Φ, with a small relative error in the lower tail too.
fn normal_cdf_f64(x: f64) -> f64 {
    0.5 * erfc(-x * std::f64::consts::FRAC_1_SQRT_2)
}

pub(crate) type Scalar = fn(f64) -> f64;
pub(crate) type Activate = fn(Tensor<1>) -> Tensor<1>;

pub(crate) fn activations() -> [(&'static str, Activate, Scalar); 3] {
    [
        ("silu", silu::<1>, |x| x * sigmoid_f64(x)),
        ("gelu", gelu::<1>, |x| x * normal_cdf_f64(x)),
        ("quick_gelu", quick_gelu::<1>, |x| x * sigmoid_f64(1.702 * x)),
    ]
}

/// A test case of a group norm, on the host.
pub(crate) struct GroupCase {
    pub shape: [usize; 4],
    pub groups: usize,
    pub film: bool,
    pub silu: bool,
    pub x: Vec<f32>,
    pub gamma: Vec<f32>,
    pub beta: Vec<f32>,
    pub scale: Vec<f32>,
    pub shift: Vec<f32>,
}

impl GroupCase {
    pub(crate) fn new(shape: [usize; 4], groups: usize, film: bool, silu: bool) -> Self {
        let [b, c, h, w] = shape;
        let spread = |seed, n| normal(seed, n).into_iter().map(|v| 0.5 * v + 0.7).collect::<Vec<_>>();
        Self {
            shape,
            groups,
            film,
            silu,
            x: spread(1, b * c * h * w),
            gamma: spread(2, c),
            beta: normal(3, c),
            scale: normal(4, b * c),
            shift: normal(5, b * c),
        }
    }

    pub(crate) fn layer(&self, device: &Device) -> GroupNorm {
        let mut layer = GroupNormConfig::new(self.groups, self.shape[1]).init(device);
        let n = [self.shape[1]];
        let parameter = |values: &[f32]| Some(Param::from_tensor(tensor(values, n, device)));
        (layer.gamma, layer.beta) = (parameter(&self.gamma), parameter(&self.beta));
        layer
    }

    pub(crate) fn run(&self, layer: &GroupNorm, x: Tensor<4>, scale: Tensor<2>, shift: Tensor<2>) -> Tensor<4> {
        match (self.film, self.silu) {
            (true, _) => group_norm_film_silu(layer, x, scale, shift),
            (false, true) => group_norm_silu(layer, x),
            (false, false) => group_norm(layer, x),
        }
    }

    /// The parameters in order: x, gamma, beta, scale, shift.
    pub(crate) fn reference(&self, p: [&[f64]; 5]) -> Vec<f64> {
        let [_, c, h, w] = self.shape;
        let per_group = c / self.groups * h * w;
        let mut y = p[0].to_vec();
        for (g, block) in y.chunks_mut(per_group).enumerate() {
            let mean = block.iter().sum::<f64>() / per_group as f64;
            let variance = block.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / per_group as f64;
            for (i, x) in block.iter_mut().enumerate() {
                let row = (g * per_group + i) / (h * w);
                *x = (*x - mean) / (variance + 1e-5).sqrt() * p[1][row % c] + p[2][row % c];
                if self.film {
                    *x = *x * (1.0 + p[3][row]) + p[4][row];
                }
                if self.film || self.silu {
                    *x *= sigmoid_f64(*x);
                }
            }
        }
        y
    }
}

pub(crate) fn layer_norm_f64(x: &[f64], gamma: &[f64], beta: &[f64]) -> Vec<f64> {
    let d = gamma.len() as f64;
    let normalize = |row: &[f64]| {
        let mean = row.iter().sum::<f64>() / d;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / d;
        let rows = row.iter().zip(gamma).zip(beta);
        rows.map(|((x, gamma), beta)| (x - mean) / (variance + 1e-3).sqrt() * gamma + beta).collect::<Vec<_>>()
    };
    x.chunks(gamma.len()).flat_map(normalize).collect()
}

/// The window of a convolution: side, stride, and padding above, to the left, below and to the right.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub k: usize,
    pub stride: usize,
    pub padding: [usize; 4],
}

impl Window {
    /// With padding `k/2` on every side.
    pub(crate) fn centred(k: usize, stride: usize) -> Self {
        Self { k, stride, padding: [k / 2; 4] }
    }

    /// Height and width of the result, if the window fits into the padded image.
    pub(crate) fn grid(&self, [h, w]: [usize; 2]) -> Option<[usize; 2]> {
        let [top, left, bottom, right] = self.padding;
        let side = |n: usize| Some(n.checked_sub(self.k)? / self.stride + 1);
        Some([side(top + h + bottom)?, side(left + w + right)?])
    }
}

/// Convolution straight from the definition: taps outside the image are left out.
pub(crate) fn conv_f64(x: &[f64], weight: &[f64], bias: &[f64], shape: [usize; 4], window: Window) -> Vec<f64> {
    let [b, c, h, w] = shape;
    let (Window { k, stride, padding: [top, left, ..] }, out) = (window, bias.len());
    let [h_out, w_out] = window.grid([h, w]).unwrap();
    let mut y = vec![0.0; b * out * h_out * w_out];
    y.par_chunks_mut(h_out * w_out).enumerate().for_each(|(plane, y)| {
        let (i, o) = (plane / out, plane % out);
        y.fill(bias[o]);
        for (ci, kh, kw) in (0..c * k * k).map(|n| (n / k / k, n / k % k, n % k)) {
            let weight = weight[((o * c + ci) * k + kh) * k + kw];
            let first = left.saturating_sub(kw).div_ceil(stride); // the first column with this tap inside
            for (row, y) in y.chunks_mut(w_out).enumerate() {
                let Some(r) = (row * stride + kh).checked_sub(top).filter(|r| *r < h) else { continue };
                let from = &x[((i * c + ci) * h + r) * w..][..w];
                let from = from.iter().skip(first * stride + kw - left).step_by(stride);
                y.iter_mut().skip(first).zip(from).for_each(|(y, x)| *y += weight * x);
            }
        }
    });
    y
}

/// `q · kᵀ / √Dh`, and `f32::MIN` where `mask[b][q][k]`; `dims` are B, heads, Sq, Sk and Dh.
pub(crate) fn scores_f64(q: &[f64], k: &[f64], mask: &[bool], dims: [usize; 5]) -> Vec<f64> {
    let [b, heads, s_q, s_k, d] = dims;
    let mut scores = Vec::with_capacity(b * heads * s_q * s_k);
    for (i, row, j) in (0..b * heads * s_q * s_k).map(|n| (n / s_k / s_q, n / s_k % s_q, n % s_k)) {
        let masked = mask[(i / heads * s_q + row) * s_k + j];
        let product = dot(&q[(i * s_q + row) * d..][..d], &k[(i * s_k + j) * d..][..d]);
        scores.push(if masked { f64::from(f32::MIN) } else { product / (d as f64).sqrt() });
    }
    scores
}

/// Attention of `[B, heads, S, Dh]`, with mask and sizes as for [`scores_f64`].
pub(crate) fn attention_f64(q: &[f64], k: &[f64], v: &[f64], mask: &[bool], dims: [usize; 5]) -> Vec<f64> {
    let [_, _, s_q, s_k, d] = dims;
    let mut y = Vec::new();
    for (row, scores) in scores_f64(q, k, mask, dims).chunks_mut(s_k).enumerate() {
        let v = &v[row / s_q * s_k * d..][..s_k * d];
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        scores.iter_mut().for_each(|s| *s = (*s - max).exp());
        let sum: f64 = scores.iter().sum();
        y.extend((0..d).map(|e| (0..s_k).map(|j| scores[j] / sum * v[j * d + e]).sum::<f64>()));
    }
    y
}
