//! The operations with their gradients.

use burn::backend::autodiff::{
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind, unary},
};
use burn::backend::{Autodiff, Flex, flex::FlexTensor, tensor::FloatTensor};
use burn::tensor::Shape;

use super::Elementwise;
use super::elementwise;
use super::norm::{self, GroupNormShape, Moments};
use super::ops::{NnOps, Parameters, normalize, tensor, values, whole};

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
