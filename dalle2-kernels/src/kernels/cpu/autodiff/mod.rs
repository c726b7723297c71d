//! The operations with their gradients.

mod attention;
mod norms;
mod products;

use burn::backend::autodiff::{
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind, unary},
};
use burn::backend::{Autodiff, Flex, flex::FlexTensor, tensor::BoolTensor, tensor::FloatTensor, tensor::IntTensor};
use burn::tensor::Shape;

use self::attention::attend;
use self::norms::{GroupNormStep, LayerNormStep, NormalizedRows, run};
use self::products::{ConvStep, EmbeddingStep, LinearStep};
use super::Elementwise;
use super::conv::ConvShape;
use super::elementwise;
use super::norm::GroupNormShape;
use super::ops::{NnOps, Parameters, convolve, ids_of, in_order, linear, normalize_rows, tensor, values, whole};
use super::raw::columns;

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
        let y = convolve(&x, &weight, bias.into_primitive(), None, &shape);
        finish(kind, (x, weight, shape), y)
    }

    fn convolution_onto(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        shape: ConvShape,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), weight.node(), bias.node(), residual.node()];
        let kind = ConvStep.prepare::<C>(nodes).compute_bound().stateful();
        let (x, weight) = (whole(x.into_primitive()), whole(weight.into_primitive()));
        let y = convolve(&x, &weight, bias.into_primitive(), Some(residual.into_primitive()), &shape);
        finish(kind, (x, weight, shape), y)
    }

    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        let kind = LinearStep.prepare::<C>([x.node(), weight.node(), bias.node()]).compute_bound().stateful();
        let (x, weight) = (whole(x.into_primitive()), in_order(weight.into_primitive()));
        let y = linear(&x, &weight, bias.into_primitive(), None);
        finish(kind, (x, weight), y)
    }

    fn linear_onto(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        residual: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), weight.node(), bias.node(), residual.node()];
        let kind = LinearStep.prepare::<C>(nodes).compute_bound().stateful();
        let (x, weight) = (whole(x.into_primitive()), in_order(weight.into_primitive()));
        let y = linear(&x, &weight, bias.into_primitive(), Some(residual.into_primitive()));
        finish(kind, (x, weight), y)
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
        finish(kind, (), y)
    }

    fn joined(a: FloatTensor<Self>, b: FloatTensor<Self>, axis: usize) -> FloatTensor<Self> {
        let kind = JoinedStep.prepare::<C>([a.node(), b.node()]).compute_bound().stateful();
        let (a, b) = (a.into_primitive(), b.into_primitive());
        let shapes = [&a, &b].map(|x| x.layout().shape().clone());
        let y = Flex::joined(a, b, axis);
        finish(kind, (shapes, axis), y)
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

/// The result, with what its gradient needs if one is wanted.
fn finish<S, C, T, const N: usize>(
    kind: OpsKind<S, Flex, T, C, N>,
    state: T,
    y: FlexTensor,
) -> FloatTensor<Autodiff<Flex, C>>
where
    S: Backward<Flex, N, State = T>,
    C: CheckpointStrategy,
    T: Clone + Send + std::fmt::Debug + 'static,
{
    match kind {
        OpsKind::Tracked(prep) => prep.finish(state, y),
        OpsKind::UnTracked(prep) => prep.finish(y),
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
