//! The operations with their gradients.

use burn::backend::autodiff::{
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind, unary},
};
use burn::backend::{Autodiff, Flex, flex::FlexTensor, tensor::BoolTensor, tensor::FloatTensor, tensor::IntTensor};
use burn::tensor::Shape;

use super::Elementwise;
use super::conv::{self, ConvShape};
use super::elementwise;
use super::norm::{self, GroupNormShape, Moments};
use super::ops::{
    NnOps, Parameters, Softmax, convolve, ids_of, in_order, linear, matrix, matrix_of, normalize, normalize_rows,
    tensor, values, whole,
};
use super::panels::Matrix;
use super::raw::{Bias, columns, matrix_product, matrix_products};
use super::rows::{self, LayerNormRows};

impl<C: CheckpointStrategy> NnOps for Autodiff<Flex, C> {
    fn elementwise(x: FloatTensor<Self>, function: Elementwise) -> FloatTensor<Self> {
        match ElementwiseStep.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let x = x.into_primitive();
                prep.finish((x.clone(), function), Flex::elementwise(x, function))
            }
            OpsKind::UnTracked(prep) => prep.finish(Flex::elementwise(x.into_primitive(), function)),
        }
    }

    fn group_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        shape: GroupNormShape,
    ) -> FloatTensor<Self> {
        let kind = GroupNormStep.prepare::<C>([x.node(), gamma.node(), beta.node()]).compute_bound().stateful();
        let parameters = Parameters::new(gamma.into_primitive(), beta.into_primitive(), None);
        run(kind, x.into_primitive(), parameters, shape)
    }

    fn group_norm_film(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        shape: GroupNormShape,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), gamma.node(), beta.node(), scale.node(), shift.node()];
        let kind = GroupNormStep.prepare::<C>(nodes).compute_bound().stateful();
        let film = (scale.into_primitive(), shift.into_primitive());
        let parameters = Parameters::new(gamma.into_primitive(), beta.into_primitive(), Some(film));
        run(kind, x.into_primitive(), parameters, shape)
    }

    fn convolution(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        shape: ConvShape,
    ) -> FloatTensor<Self> {
        let kind = ConvStep.prepare::<C>([x.node(), weight.node(), bias.node()]).compute_bound().stateful();
        let (x, weight) = (whole(x.into_primitive()), whole(weight.into_primitive()));
        let y = convolve(&x, &weight, bias.into_primitive(), &shape);
        match kind {
            OpsKind::Tracked(prep) => prep.finish((x, weight, shape), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        let kind = LinearStep.prepare::<C>([x.node(), weight.node(), bias.node()]).compute_bound().stateful();
        let (x, weight) = (whole(x.into_primitive()), in_order(weight.into_primitive()));
        let y = linear(&x, &weight, bias.into_primitive());
        match kind {
            OpsKind::Tracked(prep) => prep.finish((x, weight), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn embedding_rows(weight: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self> {
        let kind = EmbeddingStep.prepare::<C>([weight.node()]).compute_bound().stateful();
        let weight = weight.into_primitive();
        match kind {
            OpsKind::Tracked(prep) => {
                let shape = weight.layout().shape().clone();
                prep.finish((ids_of(&ids), shape), Flex::embedding_rows(weight, ids))
            }
            OpsKind::UnTracked(prep) => prep.finish(Flex::embedding_rows(weight, ids)),
        }
    }

    fn swapped(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let kind = SwappedStep.prepare::<C>([x.node()]).compute_bound().stateful();
        let y = Flex::swapped(x.into_primitive());
        match kind {
            OpsKind::Tracked(prep) => prep.finish((), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn joined(a: FloatTensor<Self>, b: FloatTensor<Self>, axis: usize) -> FloatTensor<Self> {
        let kind = JoinedStep.prepare::<C>([a.node(), b.node()]).compute_bound().stateful();
        let (a, b) = (a.into_primitive(), b.into_primitive());
        let shapes = [&a, &b].map(|x| x.layout().shape().clone());
        let y = Flex::joined(a, b, axis);
        match kind {
            OpsKind::Tracked(prep) => prep.finish((shapes, axis), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn layer_norm_rows(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        let kind = LayerNormStep.prepare::<C>([x.node(), gamma.node(), beta.node()]).compute_bound().stateful();
        let (gamma, beta) = (whole(gamma.into_primitive()), whole(beta.into_primitive()));
        match kind {
            OpsKind::Tracked(prep) => {
                let x = whole(x.into_primitive());
                let (y, moments) = normalize_rows(x.clone(), &gamma, &beta, epsilon);
                prep.finish(NormalizedRows { x, gamma, beta, moments, epsilon }, y)
            }
            OpsKind::UnTracked(prep) => prep.finish(normalize_rows(x.into_primitive(), &gamma, &beta, epsilon).0),
        }
    }

    fn attention(q: FloatTensor<Self>, k: FloatTensor<Self>, v: FloatTensor<Self>, scale: f32) -> FloatTensor<Self> {
        attend::<C>([q, k, v], None, scale)
    }

    fn masked_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        mask: BoolTensor<Self>,
        scale: f32,
    ) -> FloatTensor<Self> {
        attend::<C>([q, k, v], Some(mask), scale)
    }
}

/// The attention; its weights are kept if a gradient is wanted.
fn attend<C: CheckpointStrategy>(
    [q, k, v]: [FloatTensor<Autodiff<Flex, C>>; 3],
    mask: Option<BoolTensor<Flex>>,
    scale: f32,
) -> FloatTensor<Autodiff<Flex, C>> {
    let kind = AttentionStep.prepare::<C>([q.node(), k.node(), v.node()]).compute_bound().stateful();
    let [q, k, v] = [q, k, v].map(|x| x.into_primitive());
    match kind {
        OpsKind::Tracked(prep) => {
            let softmax = Softmax::new(mask, scale);
            let [q, k, v] = [q, k, v].map(whole);
            let weights = softmax.forward(products(&q, &k, |[q, k]| [q, k.transposed()]));
            let y = products(&weights, &v, |factors| factors);
            prep.finish(Attended { q, k, v, weights, softmax }, y)
        }
        OpsKind::UnTracked(prep) => prep.finish(match mask {
            Some(mask) => Flex::masked_attention(q, k, v, mask, scale),
            None => Flex::attention(q, k, v, scale),
        }),
    }
}

/// The product of the factors that `f` makes of each pair of matrices `[B, heads, .., ..]`.
fn products(
    a: &FlexTensor,
    b: &FlexTensor,
    f: impl for<'a> Fn([Matrix<'a>; 2]) -> [Matrix<'a>; 2] + Sync,
) -> FlexTensor {
    let [items, heads, ..] = a.layout().shape().dims::<4>();
    let factors = |i| f([matrix_of(a, i), matrix_of(b, i)]);
    let [left, right] = factors(0);
    let size = [left.size()[0], right.size()[1]];
    tensor(matrix_products(items * heads, factors, Bias::None), Shape::from([items, heads, size[0], size[1]]))
}

/// Backward step of [`NnOps::linear`].
#[derive(Debug)]
struct LinearStep;

impl Backward<Flex, 3> for LinearStep {
    type State = (FlexTensor, FlexTensor);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (x, weight) = ops.state;
        let [of_x, of_weight, of_bias] = ops.parents;
        let grad = whole(grads.consume::<Flex>(&ops.node));
        if let Some(parent) = of_x {
            let found = matrix_product(matrix(&grad), matrix(&weight).transposed(), Bias::None);
            grads.register::<Flex>(parent.id, tensor(found, x.layout().shape().clone()));
        }
        if let Some(parent) = of_weight {
            let found = matrix_product(matrix(&x).transposed(), matrix(&grad), Bias::None);
            grads.register::<Flex>(parent.id, tensor(found, weight.layout().shape().clone()));
        }
        if let Some(parent) = of_bias {
            let found = rows::column_sums(values(&grad), weight.layout().shape()[1]);
            grads.register::<Flex>(parent.id, tensor(found, Shape::from([weight.layout().shape()[1]])));
        }
    }
}

/// Backward step of [`NnOps::embedding_rows`].
#[derive(Debug)]
struct EmbeddingStep;

impl Backward<Flex, 1> for EmbeddingStep {
    type State = (Vec<usize>, Shape);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (ids, shape) = ops.state;
        unary::<Flex, _>(ops.parents, ops.node, grads, |grad| {
            let grad = whole(grad);
            let width = shape[1];
            let mut rows = vec![0.0; shape.num_elements()];
            for (id, grad) in ids.iter().zip(values(&grad).chunks_exact(width)) {
                rows[id * width..][..width].iter_mut().zip(grad).for_each(|(sum, grad)| *sum += grad);
            }
            tensor(rows, shape)
        });
    }
}

/// Backward step of [`NnOps::swapped`].
#[derive(Debug)]
struct SwappedStep;

impl Backward<Flex, 1> for SwappedStep {
    type State = ();

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        unary::<Flex, _>(ops.parents, ops.node, grads, Flex::swapped);
    }
}

/// Backward step of [`NnOps::joined`].
#[derive(Debug)]
struct JoinedStep;

impl Backward<Flex, 2> for JoinedStep {
    type State = ([Shape; 2], usize);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (shapes, axis) = ops.state;
        let grad = whole(grads.consume::<Flex>(&ops.node));
        let rows = shapes[0][..axis].iter().product::<usize>();
        let mut first = 0;
        for (parent, shape) in ops.parents.into_iter().zip(shapes) {
            let width = shape[axis..].iter().product::<usize>();
            if let Some(parent) = parent {
                let found = columns(values(&grad), rows, first..first + width);
                grads.register::<Flex>(parent.id, tensor(found, shape));
            }
            first += width;
        }
    }
}

/// Backward step of [`NnOps::layer_norm_rows`].
#[derive(Debug)]
struct LayerNormStep;

/// What [`LayerNormStep`] keeps of the forward pass.
#[derive(Debug, Clone)]
struct NormalizedRows {
    x: FlexTensor,
    gamma: FlexTensor,
    beta: FlexTensor,
    moments: Vec<Moments>,
    epsilon: f32,
}

impl Backward<Flex, 3> for LayerNormStep {
    type State = NormalizedRows;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let NormalizedRows { x, gamma, beta, moments, epsilon } = ops.state;
        let norm = LayerNormRows { gamma: values(&gamma), beta: values(&beta), epsilon };
        let mut of_x = whole(grads.consume::<Flex>(&ops.node));
        let (of_gamma, of_beta) = norm.backward(&moments, values(&x), of_x.storage_mut());
        let per_column = |values: Vec<f32>| tensor(values, gamma.layout().shape().clone());
        for (parent, grad) in ops.parents.into_iter().zip([of_x, per_column(of_gamma), per_column(of_beta)]) {
            if let Some(parent) = parent {
                grads.register::<Flex>(parent.id, grad);
            }
        }
    }
}

/// Backward step of the attentions.
#[derive(Debug)]
struct AttentionStep;

/// What [`AttentionStep`] keeps of the forward pass.
#[derive(Debug, Clone)]
struct Attended {
    q: FlexTensor,
    k: FlexTensor,
    v: FlexTensor,
    weights: FlexTensor,
    softmax: Softmax,
}

impl Backward<Flex, 3> for AttentionStep {
    type State = Attended;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let Attended { q, k, v, weights, softmax } = ops.state;
        let [of_q, of_k, of_v] = ops.parents;
        let grad = whole(grads.consume::<Flex>(&ops.node));
        if let Some(parent) = of_v {
            grads
                .register::<Flex>(parent.id, products(&weights, &grad, |[weights, grad]| [weights.transposed(), grad]));
        }
        if of_q.is_none() && of_k.is_none() {
            return;
        }
        let of_weights = products(&grad, &v, |[grad, v]| [grad, v.transposed()]);
        let of_scores = softmax.backward(&weights, of_weights);
        if let Some(parent) = of_k {
            grads.register::<Flex>(parent.id, products(&of_scores, &q, |[scores, q]| [scores.transposed(), q]));
        }
        if let Some(parent) = of_q {
            grads.register::<Flex>(parent.id, products(&of_scores, &k, |factors| factors));
        }
    }
}

/// Backward step of [`NnOps::elementwise`].
#[derive(Debug)]
struct ElementwiseStep;

impl Backward<Flex, 1> for ElementwiseStep {
    type State = (FlexTensor, Elementwise);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (x, function) = ops.state;
        unary::<Flex, _>(ops.parents, ops.node, grads, |grad| {
            let mut grad = whole(grad);
            // Copies the gradient only if someone else holds it.
            elementwise::scale_by_slope(function, grad.storage_mut(), values(&whole(x)));
            grad
        });
    }
}

/// Backward step of [`NnOps::convolution`].
#[derive(Debug)]
struct ConvStep;

impl Backward<Flex, 3> for ConvStep {
    type State = (FlexTensor, FlexTensor, ConvShape);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (x, weight, shape) = ops.state;
        let [of_x, of_weight, of_bias] = ops.parents;
        let grad = whole(grads.consume::<Flex>(&ops.node));
        let wants = [of_x.is_some(), of_weight.is_some()];
        let found = conv::backward(&shape, values(&x), &weight, values(&grad), wants);
        if let (Some(parent), Some(found)) = (of_x, found.x) {
            grads.register::<Flex>(parent.id, tensor(found, x.layout().shape().clone()));
        }
        if let (Some(parent), Some(found)) = (of_weight, found.weight) {
            grads.register::<Flex>(parent.id, tensor(found, weight.layout().shape().clone()));
        }
        if let Some(parent) = of_bias {
            let found = conv::bias_gradient(&shape, values(&grad));
            grads.register::<Flex>(parent.id, tensor(found, Shape::from([shape.channels[1]])));
        }
    }
}

/// Backward step of the group norms; the parents are x, γ, β and, with FiLM, scale and shift.
#[derive(Debug)]
struct GroupNormStep;

/// What [`GroupNormStep`] keeps of the forward pass.
#[derive(Debug, Clone)]
struct Normalized {
    x: FlexTensor,
    parameters: Parameters,
    moments: Vec<Moments>,
    shape: GroupNormShape,
}

/// Computes the group norm, and keeps what its gradient needs if any is wanted.
fn run<C, const N: usize>(
    kind: OpsKind<GroupNormStep, Flex, Normalized, C, N>,
    x: FlexTensor,
    parameters: Parameters,
    shape: GroupNormShape,
) -> FloatTensor<Autodiff<Flex, C>>
where
    C: CheckpointStrategy,
{
    match kind {
        OpsKind::Tracked(prep) => {
            let x = whole(x);
            let (y, moments) = normalize(x.clone(), &parameters, &shape);
            prep.finish(Normalized { x, parameters, moments, shape }, y)
        }
        OpsKind::UnTracked(prep) => prep.finish(normalize(x, &parameters, &shape).0),
    }
}

impl<const N: usize> Backward<Flex, N> for GroupNormStep {
    type State = Normalized;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let Normalized { x, parameters, moments, shape } = ops.state;
        let affine = parameters.affine();
        let channels = shape.channels;
        let mut of_x = whole(grads.consume::<Flex>(&ops.node));
        let sums = norm::backward(&shape, &affine, &moments, values(&x), of_x.storage_mut());
        let of_affine = norm::affine_gradients(channels, &affine, &sums);

        let per_channel = |values| tensor(values, Shape::from([channels]));
        let per_row = |values: Vec<f32>| tensor(values, Shape::from([sums.len() / channels, channels]));
        let mut found = vec![of_x, per_channel(of_affine.gamma), per_channel(of_affine.beta)];
        if let Some((scale, shift)) = of_affine.film {
            found.extend([per_row(scale), per_row(shift)]);
        }
        for (parent, grad) in ops.parents.into_iter().zip(found) {
            if let Some(parent) = parent {
                grads.register::<Flex>(parent.id, grad);
            }
        }
    }
}
