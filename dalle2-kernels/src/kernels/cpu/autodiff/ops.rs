//! [`NnOps`] with gradients.

use burn::backend::autodiff::{
    checkpoint::strategy::CheckpointStrategy,
    ops::{Backward, OpsKind},
};
use burn::backend::{Autodiff, Flex, flex::FlexTensor, tensor::BoolTensor, tensor::FloatTensor, tensor::IntTensor};

use super::super::Elementwise;
use super::super::conv::ConvShape;
use super::super::norm::GroupNormShape;
use super::super::ops::{
    NnOps, Parameters, contiguous, convolve, linear, normalize_rows, row_or_column_major, token_ids,
};
use super::attention::attend;
use super::layout::{ConcatStep, ElementwiseStep, SwapMiddleStep};
use super::norms::{GroupNormStep, LayerNormStep, NormalizedRows, group_norm};
use super::products::{ConvStep, EmbeddingStep, LinearStep};

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
        group_norm(kind, x.into_primitive(), parameters, shape)
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
        group_norm(kind, x.into_primitive(), parameters, shape)
    }

    fn convolution(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        shape: ConvShape,
    ) -> FloatTensor<Self> {
        let kind = ConvStep.prepare::<C>([x.node(), weight.node(), bias.node()]).compute_bound().stateful();
        let (x, weight) = (contiguous(x.into_primitive()), contiguous(weight.into_primitive()));
        let y = convolve(&x, &weight, bias.into_primitive(), None, &shape);
        finish(kind, (x, weight, shape), y)
    }

    fn conv2d_add(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        shape: ConvShape,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), weight.node(), bias.node(), residual.node()];
        let kind = ConvStep.prepare::<C>(nodes).compute_bound().stateful();
        let (x, weight) = (contiguous(x.into_primitive()), contiguous(weight.into_primitive()));
        let y = convolve(&x, &weight, bias.into_primitive(), Some(residual.into_primitive()), &shape);
        finish(kind, (x, weight, shape), y)
    }

    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        let kind = LinearStep.prepare::<C>([x.node(), weight.node(), bias.node()]).compute_bound().stateful();
        let (x, weight) = (contiguous(x.into_primitive()), row_or_column_major(weight.into_primitive()));
        let y = linear(&x, &weight, bias.into_primitive(), None);
        finish(kind, (x, weight), y)
    }

    fn linear_add(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        residual: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), weight.node(), bias.node(), residual.node()];
        let kind = LinearStep.prepare::<C>(nodes).compute_bound().stateful();
        let (x, weight) = (contiguous(x.into_primitive()), row_or_column_major(weight.into_primitive()));
        let y = linear(&x, &weight, bias.into_primitive(), Some(residual.into_primitive()));
        finish(kind, (x, weight), y)
    }

    fn embedding_rows(weight: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self> {
        let kind = EmbeddingStep.prepare::<C>([weight.node()]).compute_bound().stateful();
        let weight = weight.into_primitive();
        match kind {
            OpsKind::Tracked(prep) => {
                let shape = weight.layout().shape().clone();
                prep.finish((token_ids(&ids), shape), Flex::embedding_rows(weight, ids))
            }
            OpsKind::UnTracked(prep) => prep.finish(Flex::embedding_rows(weight, ids)),
        }
    }

    fn swap_middle(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let kind = SwapMiddleStep.prepare::<C>([x.node()]).compute_bound().stateful();
        let y = Flex::swap_middle(x.into_primitive());
        finish(kind, (), y)
    }

    fn concat(a: FloatTensor<Self>, b: FloatTensor<Self>, axis: usize) -> FloatTensor<Self> {
        let kind = ConcatStep.prepare::<C>([a.node(), b.node()]).compute_bound().stateful();
        let (a, b) = (a.into_primitive(), b.into_primitive());
        let shapes = [&a, &b].map(|x| x.layout().shape().clone());
        let y = Flex::concat(a, b, axis);
        finish(kind, (shapes, axis), y)
    }

    fn layer_norm_rows(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        let kind = LayerNormStep.prepare::<C>([x.node(), gamma.node(), beta.node()]).compute_bound().stateful();
        let (gamma, beta) = (contiguous(gamma.into_primitive()), contiguous(beta.into_primitive()));
        match kind {
            OpsKind::Tracked(prep) => {
                let x = contiguous(x.into_primitive());
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

/// Registers the result, with the activations for backward if a gradient is required.
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
