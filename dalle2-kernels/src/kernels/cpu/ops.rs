//! The operations as a backend extension, implemented for the CPU backend `Flex`.

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
use super::raw::{Bias, add_products, concat, copy_and_map, matrix_product, swap_middle};
use super::rows::{self, LayerNormRows, RowMask};

/// Operations with own kernels.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait NnOps: Backend {
    /// `function(x)` for every element.
    fn elementwise(x: FloatTensor<Self>, function: Elementwise) -> FloatTensor<Self>;

    /// Group norm of `[B, C, H, W]` with γ and β `[C]`, followed by SiLU if `shape.silu`.
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
    fn conv2d_add(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        shape: ConvShape,
    ) -> FloatTensor<Self>;

    /// `x · weight + bias` of `[rows, inputs]`, `[inputs, outputs]` and `[outputs]`.
    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self>;

    /// [`NnOps::linear`] plus `residual` `[rows, outputs]`.
    fn linear_add(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        residual: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// Rows of `weight` `[n, d]` for ids `[B, S]` in i32 or i64, as `[B, S, d]`.
    fn embedding_rows(weight: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self>;

    /// `[A, B, C, D]` as `[A, C, B, D]`.
    fn swap_middle(x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// Concatenates along an axis.
    fn concat(a: FloatTensor<Self>, b: FloatTensor<Self>, axis: usize) -> FloatTensor<Self>;

    /// Layer norm over the last axis with γ and β of its width.
    fn layer_norm_rows(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self>;

    /// `softmax(scale · q · kᵀ) · v` of `q` `[B, heads, Sq, Dh]` and `k` and `v` `[B, heads, Sk, Dh]`.
    fn attention(q: FloatTensor<Self>, k: FloatTensor<Self>, v: FloatTensor<Self>, scale: f32) -> FloatTensor<Self>;

    /// [`NnOps::attention`] with a mask `[B or 1, 1, Sq, Sk]`, `true` where masked out.
    fn masked_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        mask: BoolTensor<Self>,
        scale: f32,
    ) -> FloatTensor<Self>;
}

/// The range of a contiguous tensor in its storage.
pub(crate) fn data_range(x: &FlexTensor) -> Range<usize> {
    let start = x.layout().start_offset();
    start..start + x.layout().num_elements()
}

impl NnOps for Flex {
    fn elementwise(x: FlexTensor, function: Elementwise) -> FlexTensor {
        let mut x = contiguous(x);
        if x.is_unique() {
            elementwise::map_in_place(function, x.storage_mut());
            return x;
        }
        tensor(elementwise::map(function, data(&x)), x.layout().shape().clone())
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
        convolve(&contiguous(x), &contiguous(weight), bias, None, &shape)
    }

    fn conv2d_add(
        x: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        residual: FlexTensor,
        shape: ConvShape,
    ) -> FlexTensor {
        convolve(&contiguous(x), &contiguous(weight), bias, Some(residual), &shape)
    }

    fn linear(x: FlexTensor, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
        linear(&contiguous(x), &row_or_column_major(weight), bias, None)
    }

    fn linear_add(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, residual: FlexTensor) -> FlexTensor {
        linear(&contiguous(x), &row_or_column_major(weight), bias, Some(residual))
    }

    fn embedding_rows(weight: FlexTensor, ids: FlexTensor) -> FlexTensor {
        Flex::embedding(weight, ids)
    }

    fn swap_middle(x: FlexTensor) -> FlexTensor {
        let x = contiguous(x);
        let [a, b, c, d] = x.layout().shape().dims();
        tensor(swap_middle(data(&x), [a, b, c, d]), Shape::from([a, c, b, d]))
    }

    fn concat(a: FlexTensor, b: FlexTensor, axis: usize) -> FlexTensor {
        let (a, b) = (contiguous(a), contiguous(b));
        let mut shape: [usize; 4] = a.layout().shape().dims();
        let rows = shape[..axis].iter().product();
        shape[axis] += b.layout().shape()[axis];
        tensor(concat(data(&a), data(&b), rows), Shape::from(shape))
    }

    fn layer_norm_rows(x: FlexTensor, gamma: FlexTensor, beta: FlexTensor, epsilon: f32) -> FlexTensor {
        normalize_rows(x, &contiguous(gamma), &contiguous(beta), epsilon).0
    }

    fn attention(q: FlexTensor, k: FlexTensor, v: FlexTensor, scale: f32) -> FlexTensor {
        Softmax::new(None, scale).attend(q, k, v)
    }

    fn masked_attention(q: FlexTensor, k: FlexTensor, v: FlexTensor, mask: FlexTensor, scale: f32) -> FlexTensor {
        Softmax::new(Some(mask), scale).attend(q, k, v)
    }
}

/// `x · weight + bias`, plus `residual` if given. `x` comes from [`contiguous`] and `weight` from [`row_or_column_major`];
/// bias and residual have any layout.
pub(crate) fn linear(
    x: &FlexTensor,
    weight: &FlexTensor,
    bias: FlexTensor,
    residual: Option<FlexTensor>,
) -> FlexTensor {
    let bias = contiguous(bias);
    let (factors, bias) = ([matrix(x), matrix(weight)], Bias::PerColumn(data(&bias)));
    let Some(residual) = residual else {
        let y = matrix_product(factors[0], factors[1], bias);
        return tensor(y, Shape::from([x.layout().shape()[0], weight.layout().shape()[1]]));
    };
    let mut y = contiguous(residual);
    add_products(1, |_| factors, bias, unique_data(&mut y));
    y
}

/// The elements of a tensor from [`contiguous`], copied first if its storage is shared.
fn unique_data(x: &mut FlexTensor) -> &mut [f32] {
    if !x.is_unique() {
        *x = tensor(concat(data(x), &[], 1), x.layout().shape().clone());
    }
    x.storage_mut()
}

/// Ids in i32 or i64 as indices.
pub(crate) fn token_ids(ids: &FlexTensor) -> Vec<usize> {
    let ids = ids.to_contiguous();
    match ids.dtype() {
        DType::I32 => ids.storage::<i32>()[data_range(&ids)].iter().map(|id| *id as usize).collect(),
        _ => ids.storage::<i64>()[data_range(&ids)].iter().map(|id| *id as usize).collect(),
    }
}

/// Returns a matrix that is row-major or column-major and fills its storage.
pub(crate) fn row_or_column_major(x: FlexTensor) -> FlexTensor {
    let columns = x.clone().transpose(0, 1);
    let fills = |x: &FlexTensor| x.layout().start_offset() == 0 && data(x).len() == x.layout().num_elements();
    if columns.is_contiguous() && fills(&columns) { x } else { contiguous(x) }
}

/// Views a tensor from [`contiguous`] or [`row_or_column_major`] as a matrix.
pub(crate) fn matrix(x: &FlexTensor) -> Matrix<'_> {
    let [rows, columns] = x.layout().shape().dims();
    if x.is_contiguous() {
        Matrix::new(data(x), [rows, columns])
    } else {
        Matrix::new(data(x), [columns, rows]).transposed()
    }
}

/// Views matrix i of a batch `[.., rows, columns]` from [`contiguous`].
pub(crate) fn batch_matrix(x: &FlexTensor, i: usize) -> Matrix<'_> {
    let [.., rows, columns] = x.layout().shape().dims::<4>();
    Matrix::new(&data(x)[i * rows * columns..][..rows * columns], [rows, columns])
}

/// Layer norm with parameters from [`contiguous`], in place if the storage of `x` is not shared.
pub(crate) fn normalize_rows(
    x: FlexTensor,
    gamma: &FlexTensor,
    beta: &FlexTensor,
    epsilon: f32,
) -> (FlexTensor, Vec<Moments>) {
    let norm = LayerNormRows { gamma: data(gamma), beta: data(beta), epsilon };
    let mut x = contiguous(x);
    if x.is_unique() {
        let moments = norm.normalize(x.storage_mut());
        return (x, moments);
    }
    let (y, moments) = norm.normalized(data(&x));
    (tensor(y, x.layout().shape().clone()), moments)
}

/// A softmax over the last axis of `[B, heads, Sq, Sk]`.
#[derive(Debug, Clone)]
pub(crate) struct Softmax {
    mask: Option<FlexTensor>,
    scale: f32,
}

impl Softmax {
    /// Creates the softmax of `scale` times the scores with a mask `[B or 1, 1, Sq, Sk]`, `true` where masked out.
    pub(crate) fn new(mask: Option<FlexTensor>, scale: f32) -> Self {
        Self { mask: mask.map(|mask| mask.to_contiguous()), scale }
    }

    /// Attention with this softmax of `q · kᵀ` as weights.
    fn attend(&self, q: FlexTensor, k: FlexTensor, v: FlexTensor) -> FlexTensor {
        let [q, k, v] = [q, k, v].map(contiguous);
        let [b, heads, queries, width] = q.layout().shape().dims();
        let keys = k.layout().shape()[2];
        let shape = AttentionShape { heads: b * heads, queries, keys, width };
        let mask = self.mask(queries, heads);
        let y = attention::forward(&shape, [&q, &k, &v].map(data), mask.as_ref(), self.scale);
        tensor(y, q.layout().shape().clone())
    }

    /// Computes the weights, in place if the storage of the scores is not shared.
    pub(crate) fn forward(&self, scores: FlexTensor) -> FlexTensor {
        let mut scores = contiguous(scores);
        let [_, heads, queries, width] = scores.layout().shape().dims();
        rows::softmax(width, self.scale, self.mask(queries, heads).as_ref(), scores.storage_mut());
        scores
    }

    /// Computes the gradient of the scores from the weights and their gradient.
    pub(crate) fn backward(&self, weights: &FlexTensor, grad: FlexTensor) -> FlexTensor {
        let mut grad = contiguous(grad);
        let [_, heads, queries, width] = weights.layout().shape().dims();
        let mask = self.mask(queries, heads);
        rows::softmax_backward(width, self.scale, mask.as_ref(), data(weights), grad.storage_mut());
        grad
    }

    fn mask(&self, queries: usize, heads: usize) -> Option<RowMask<'_>> {
        self.mask.as_ref().map(|mask| RowMask { data: mask.storage(), queries, heads })
    }
}

/// Convolution of tensors from [`contiguous`], with a bias and a residual in any layout.
pub(crate) fn convolve(
    x: &FlexTensor,
    weight: &FlexTensor,
    bias: FlexTensor,
    residual: Option<FlexTensor>,
    shape: &ConvShape,
) -> FlexTensor {
    let (bias, residual) = (contiguous(bias), residual.map(contiguous));
    let y = match residual {
        Some(mut y) if shape.is_pointwise() && [shape.resample, shape.residual] == [Resample::Keep; 2] => {
            conv::add_pointwise(shape, data(x), weight, data(&bias), unique_data(&mut y));
            return y;
        }
        residual => conv::forward(shape, data(x), weight, data(&bias), residual.as_ref().map(data)),
    };
    let [height, width] = shape.grid;
    tensor(y, Shape::from([shape.batch, shape.channels[1], height, width]))
}

/// The parameters of a group norm, contiguous.
#[derive(Debug, Clone)]
pub(crate) struct Parameters {
    gamma: FlexTensor,
    beta: FlexTensor,
    film: Option<(FlexTensor, FlexTensor)>,
}

impl Parameters {
    /// Creates the parameters from tensors in any layout.
    pub(crate) fn new(gamma: FlexTensor, beta: FlexTensor, film: Option<(FlexTensor, FlexTensor)>) -> Self {
        Self {
            gamma: contiguous(gamma),
            beta: contiguous(beta),
            film: film.map(|(scale, shift)| (contiguous(scale), contiguous(shift))),
        }
    }

    /// Returns the parameters as slices.
    pub(crate) fn affine(&self) -> Affine<'_> {
        Affine {
            gamma: data(&self.gamma),
            beta: data(&self.beta),
            film: self.film.as_ref().map(|(scale, shift)| (data(scale), data(shift))),
        }
    }
}

/// Group norm, in place if the storage of `x` is not shared.
pub(crate) fn normalize(x: FlexTensor, parameters: &Parameters, shape: &GroupNormShape) -> (FlexTensor, Vec<Moments>) {
    let affine = parameters.affine();
    map_chunks(x, shape.group(), |group, x| norm::normalize(shape, &affine, group, x))
}

/// Applies `f(index, chunk)` to each chunk of a tensor, in place if its storage is not shared, and collects the results.
fn map_chunks<R: Send>(
    x: FlexTensor,
    chunk: usize,
    f: impl Fn(usize, &mut [f32]) -> R + Sync + Send,
) -> (FlexTensor, Vec<R>) {
    let mut x = contiguous(x);
    if x.is_unique() {
        let results = in_place(x.storage_mut(), chunk, f);
        return (x, results);
    }
    let (y, results) = copy_and_map(data(&x), chunk, f);
    (tensor(y, x.layout().shape().clone()), results)
}

/// Returns the tensor with contiguous elements that fill its storage.
pub(crate) fn contiguous(x: FlexTensor) -> FlexTensor {
    let layout = x.layout();
    if x.is_contiguous() && layout.start_offset() == 0 && data(&x).len() == layout.num_elements() {
        x
    } else {
        x.to_contiguous()
    }
}

/// The storage of a tensor; for a tensor from [`contiguous`], its elements in order.
pub(crate) fn data(x: &FlexTensor) -> &[f32] {
    x.storage()
}

/// Creates a tensor.
pub(crate) fn tensor(data: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(data, shape))
}
