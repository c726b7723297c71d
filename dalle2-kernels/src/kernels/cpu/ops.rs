//! The operations as a backend extension, and their implementation for the CPU backend `Flex`.

use std::ops::Range;

use burn::backend::flex::FlexTensor;
use burn::backend::{
    Backend, Flex, backend_extension, ops::ModuleOps, tensor::BoolTensor, tensor::FloatTensor, tensor::IntTensor,
};
use burn::tensor::{DType, Shape, TensorData};

use super::super::super::Resample;
use super::Elementwise;
use super::attention::{self, AttentionShape};
use super::conv::{self, ConvShape};
use super::elementwise;
use super::norm::{self, Affine, GroupNormShape, Moments};
use super::panels::Matrix;
use super::parallel::in_place;
use super::raw::{Bias, add_products, copied, joined, matrix_product, swapped};
use super::rows::{self, LayerNormRows, RowMask};

/// What a backend needs to run the hot operations itself.
#[backend_extension(Flex, Autodiff)]
pub trait NnOps: Backend {
    /// `function(x)` for every element.
    fn elementwise(x: FloatTensor<Self>, function: Elementwise) -> FloatTensor<Self>;

    /// Group norm of `[B, C, H, W]` with γ and β `[C]`, followed by SiLU if `shape` says so.
    fn group_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        shape: GroupNormShape,
    ) -> FloatTensor<Self>;

    /// Group norm with `· (1 + scale) + shift`, both `[B, C]`, before SiLU.
    fn group_norm_film(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        shape: GroupNormShape,
    ) -> FloatTensor<Self>;

    /// Convolution of `[B, C_in, H, W]` with a kernel `[C_out, C_in, kh, kw]` and bias `[C_out]`.
    fn convolution(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        shape: ConvShape,
    ) -> FloatTensor<Self>;

    /// [`NnOps::convolution`] plus `residual` `[B, C_out, H', W']`.
    fn convolution_onto(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        shape: ConvShape,
    ) -> FloatTensor<Self>;

    /// `x · weight + bias` of `[rows, inputs]`, `[inputs, outputs]` and `[outputs]`.
    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self>;

    /// [`NnOps::linear`] plus `residual` `[rows, outputs]`.
    fn linear_onto(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        residual: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// Rows of `weight` `[n, d]` for ids `[B, S]` in i32 or i64, as `[B, S, d]`.
    fn embedding_rows(weight: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self>;

    /// `[A, B, C, D]` as `[A, C, B, D]`.
    fn swapped(x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// `a` and then `b` along an axis of four.
    fn joined(a: FloatTensor<Self>, b: FloatTensor<Self>, axis: usize) -> FloatTensor<Self>;

    /// Layer norm over the last axis with γ and β of its width.
    fn layer_norm_rows(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self>;

    /// `softmax(scale · q · kᵀ) · v` of `q` `[B, heads, Sq, Dh]` and `k` and `v` `[B, heads, Sk, Dh]`.
    fn attention(q: FloatTensor<Self>, k: FloatTensor<Self>, v: FloatTensor<Self>, scale: f32) -> FloatTensor<Self>;

    /// [`NnOps::attention`] without what `mask` `[B or 1, 1, Sq, Sk]` leaves out.
    fn masked_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        mask: BoolTensor<Self>,
        scale: f32,
    ) -> FloatTensor<Self>;
}

/// Where the values of a contiguous tensor lie in its storage.
pub fn place(x: &FlexTensor) -> Range<usize> {
    let start = x.layout().start_offset();
    start..start + x.layout().num_elements()
}

impl NnOps for Flex {
    fn elementwise(x: FlexTensor, function: Elementwise) -> FlexTensor {
        let mut x = whole(x);
        if x.is_unique() {
            elementwise::apply(function, x.storage_mut());
            return x;
        }
        tensor(elementwise::applied(function, values(&x)), x.layout().shape().clone())
    }

    fn group_norm(x: FlexTensor, gamma: FlexTensor, beta: FlexTensor, shape: GroupNormShape) -> FlexTensor {
        normalize(x, &Parameters::new(gamma, beta, None), &shape).0
    }

    fn group_norm_film(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        scale: FlexTensor,
        shift: FlexTensor,
        shape: GroupNormShape,
    ) -> FlexTensor {
        normalize(x, &Parameters::new(gamma, beta, Some((scale, shift))), &shape).0
    }

    fn convolution(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, shape: ConvShape) -> FlexTensor {
        convolve(&whole(x), &whole(weight), bias, None, &shape)
    }

    fn convolution_onto(
        x: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        residual: FlexTensor,
        shape: ConvShape,
    ) -> FlexTensor {
        convolve(&whole(x), &whole(weight), bias, Some(residual), &shape)
    }

    fn linear(x: FlexTensor, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
        linear(&whole(x), &in_order(weight), bias, None)
    }

    fn linear_onto(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, residual: FlexTensor) -> FlexTensor {
        linear(&whole(x), &in_order(weight), bias, Some(residual))
    }

    fn embedding_rows(weight: FlexTensor, ids: FlexTensor) -> FlexTensor {
        Flex::embedding(weight, ids)
    }

    fn swapped(x: FlexTensor) -> FlexTensor {
        let x = whole(x);
        let [a, b, c, d] = x.layout().shape().dims();
        tensor(swapped(values(&x), [a, b, c, d]), Shape::from([a, c, b, d]))
    }

    fn joined(a: FlexTensor, b: FlexTensor, axis: usize) -> FlexTensor {
        let (a, b) = (whole(a), whole(b));
        let mut shape: [usize; 4] = a.layout().shape().dims();
        let rows = shape[..axis].iter().product();
        shape[axis] += b.layout().shape()[axis];
        tensor(joined(values(&a), values(&b), rows), Shape::from(shape))
    }

    fn layer_norm_rows(x: FlexTensor, gamma: FlexTensor, beta: FlexTensor, epsilon: f32) -> FlexTensor {
        normalize_rows(x, &whole(gamma), &whole(beta), epsilon).0
    }

    fn attention(q: FlexTensor, k: FlexTensor, v: FlexTensor, scale: f32) -> FlexTensor {
        Softmax::new(None, scale).attend(q, k, v)
    }

    fn masked_attention(q: FlexTensor, k: FlexTensor, v: FlexTensor, mask: FlexTensor, scale: f32) -> FlexTensor {
        Softmax::new(Some(mask), scale).attend(q, k, v)
    }
}

/// `x · weight + bias` for x from [`whole`], a weight from [`in_order`] and a bias in any layout, added to what is there
/// if there is something.
pub fn linear(x: &FlexTensor, weight: &FlexTensor, bias: FlexTensor, residual: Option<FlexTensor>) -> FlexTensor {
    let bias = whole(bias);
    let (factors, bias) = ([matrix(x), matrix(weight)], Bias::OfColumns(values(&bias)));
    let Some(residual) = residual else {
        let y = matrix_product(factors[0], factors[1], bias);
        return tensor(y, Shape::from([x.layout().shape()[0], weight.layout().shape()[1]]));
    };
    let mut y = whole(residual);
    add_products(1, |_| factors, bias, own(&mut y));
    y
}

/// The values of a tensor from [`whole`], in memory that nobody else holds.
fn own(x: &mut FlexTensor) -> &mut [f32] {
    if !x.is_unique() {
        *x = tensor(joined(values(x), &[], 1), x.layout().shape().clone());
    }
    x.storage_mut()
}

/// Ids in i32 or i64, in order.
pub fn ids_of(ids: &FlexTensor) -> Vec<usize> {
    let ids = ids.to_contiguous();
    match ids.dtype() {
        DType::I32 => ids.storage::<i32>()[place(&ids)].iter().map(|id| *id as usize).collect(),
        _ => ids.storage::<i64>()[place(&ids)].iter().map(|id| *id as usize).collect(),
    }
}

/// A matrix whose values follow each other by rows or by columns, and fill its storage.
pub fn in_order(x: FlexTensor) -> FlexTensor {
    let columns = x.clone().transpose(0, 1);
    let fills = |x: &FlexTensor| x.layout().start_offset() == 0 && values(x).len() == x.layout().num_elements();
    if columns.is_contiguous() && fills(&columns) { x } else { whole(x) }
}

/// A matrix from [`whole`] or [`in_order`].
pub fn matrix(x: &FlexTensor) -> Matrix<'_> {
    let [rows, columns] = x.layout().shape().dims();
    match x.is_contiguous() {
        true => Matrix::new(values(x), [rows, columns]),
        false => Matrix::new(values(x), [columns, rows]).transposed(),
    }
}

/// Matrix i of a tensor from [`whole`] whose last two axes are rows and columns.
pub fn matrix_of(x: &FlexTensor, i: usize) -> Matrix<'_> {
    let [.., rows, columns] = x.layout().shape().dims::<4>();
    Matrix::new(&values(x)[i * rows * columns..][..rows * columns], [rows, columns])
}

/// Layer norm with parameters from [`whole`], in place if nobody else holds `x`.
pub fn normalize_rows(
    x: FlexTensor,
    gamma: &FlexTensor,
    beta: &FlexTensor,
    epsilon: f32,
) -> (FlexTensor, Vec<Moments>) {
    let norm = LayerNormRows { gamma: values(gamma), beta: values(beta), epsilon };
    let mut x = whole(x);
    if x.is_unique() {
        let moments = norm.normalize(x.storage_mut());
        return (x, moments);
    }
    let (y, moments) = norm.normalized(values(&x));
    (tensor(y, x.layout().shape().clone()), moments)
}

/// A softmax over the last axis of `[B, heads, Sq, Sk]`.
#[derive(Debug, Clone)]
pub struct Softmax {
    mask: Option<FlexTensor>,
    scale: f32,
}

impl Softmax {
    /// Of `scale` times the scores, without what `mask` `[B or 1, 1, Sq, Sk]` leaves out.
    pub fn new(mask: Option<FlexTensor>, scale: f32) -> Self {
        Self { mask: mask.map(|mask| mask.to_contiguous()), scale }
    }

    /// The attention whose weights are this softmax of `q · kᵀ`.
    fn attend(&self, q: FlexTensor, k: FlexTensor, v: FlexTensor) -> FlexTensor {
        let [q, k, v] = [q, k, v].map(whole);
        let [b, heads, queries, width] = q.layout().shape().dims();
        let keys = k.layout().shape()[2];
        let shape = AttentionShape { heads: b * heads, queries, keys, width };
        let mask = self.mask(queries, heads);
        let y = attention::forward(&shape, [&q, &k, &v].map(values), mask.as_ref(), self.scale);
        tensor(y, q.layout().shape().clone())
    }

    /// The weights, in place if nobody else holds the scores.
    pub fn forward(&self, scores: FlexTensor) -> FlexTensor {
        let mut scores = whole(scores);
        let [_, heads, queries, width] = scores.layout().shape().dims();
        rows::softmax(width, self.scale, self.mask(queries, heads).as_ref(), scores.storage_mut());
        scores
    }

    /// The gradient of the scores, given the weights and the gradient of these.
    pub fn backward(&self, weights: &FlexTensor, grad: FlexTensor) -> FlexTensor {
        let mut grad = whole(grad);
        let [_, heads, queries, width] = weights.layout().shape().dims();
        let mask = self.mask(queries, heads);
        rows::softmax_backward(width, self.scale, mask.as_ref(), values(weights), grad.storage_mut());
        grad
    }

    fn mask(&self, queries: usize, heads: usize) -> Option<RowMask<'_>> {
        self.mask.as_ref().map(|mask| RowMask { values: mask.storage(), queries, heads })
    }
}

/// Convolution of tensors from [`whole`], with a bias and a residual in any layout.
pub fn convolve(
    x: &FlexTensor,
    weight: &FlexTensor,
    bias: FlexTensor,
    residual: Option<FlexTensor>,
    shape: &ConvShape,
) -> FlexTensor {
    let (bias, residual) = (whole(bias), residual.map(whole));
    let y = match residual {
        Some(mut y) if shape.is_pointwise() && [shape.resample, shape.residual] == [Resample::Keep; 2] => {
            conv::add_pointwise(shape, values(x), weight, values(&bias), own(&mut y));
            return y;
        }
        residual => conv::forward(shape, values(x), weight, values(&bias), residual.as_ref().map(values)),
    };
    let [height, width] = shape.grid;
    tensor(y, Shape::from([shape.batch, shape.channels[1], height, width]))
}

/// The parameters of a group norm, each with its values in order.
#[derive(Debug, Clone)]
pub struct Parameters {
    gamma: FlexTensor,
    beta: FlexTensor,
    film: Option<(FlexTensor, FlexTensor)>,
}

impl Parameters {
    /// Takes the parameters in any layout.
    pub fn new(gamma: FlexTensor, beta: FlexTensor, film: Option<(FlexTensor, FlexTensor)>) -> Self {
        Self { gamma: whole(gamma), beta: whole(beta), film: film.map(|(scale, shift)| (whole(scale), whole(shift))) }
    }

    /// As slices.
    pub fn affine(&self) -> Affine<'_> {
        Affine {
            gamma: values(&self.gamma),
            beta: values(&self.beta),
            film: self.film.as_ref().map(|(scale, shift)| (values(scale), values(shift))),
        }
    }
}

/// Group norm, in place if nobody else holds `x`.
pub fn normalize(x: FlexTensor, parameters: &Parameters, shape: &GroupNormShape) -> (FlexTensor, Vec<Moments>) {
    let affine = parameters.affine();
    changed(x, shape.group(), |group, x| norm::normalize(shape, &affine, group, x))
}

/// The tensor after `f(index, chunk)` on each chunk of its values, in place if nobody else holds it, and what `f`
/// returned.
fn changed<R: Send>(
    x: FlexTensor,
    chunk: usize,
    f: impl Fn(usize, &mut [f32]) -> R + Sync + Send,
) -> (FlexTensor, Vec<R>) {
    let mut x = whole(x);
    if x.is_unique() {
        let found = in_place(x.storage_mut(), chunk, f);
        return (x, found);
    }
    let (y, found) = copied(values(&x), chunk, f);
    (tensor(y, x.layout().shape().clone()), found)
}

/// The tensor with its values in order from the first to the last of its storage.
pub fn whole(x: FlexTensor) -> FlexTensor {
    let layout = x.layout();
    if x.is_contiguous() && layout.start_offset() == 0 && values(&x).len() == layout.num_elements() {
        x
    } else {
        x.to_contiguous()
    }
}

/// The storage of a tensor, which for one from [`whole`] is its values in order.
pub fn values(x: &FlexTensor) -> &[f32] {
    x.storage()
}

/// A tensor of these values.
pub fn tensor(values: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}
