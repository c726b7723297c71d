//! Backward steps of the norms.

use burn::backend::autodiff::{
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::{Autodiff, Flex, flex::FlexTensor, tensor::FloatTensor};
use burn::tensor::Shape;

use super::super::norm::{self, GroupNormShape, Moments};
use super::super::ops::{Parameters, contiguous, data, normalize, tensor};
use super::super::rows::LayerNormRows;

/// Backward step of [`NnOps::layer_norm_rows`].
#[derive(Debug)]
pub(crate) struct LayerNormStep;

/// Activations of a layer norm saved for backward.
#[derive(Debug, Clone)]
pub(crate) struct NormalizedRows {
    pub x: FlexTensor,
    pub gamma: FlexTensor,
    pub beta: FlexTensor,
    pub moments: Vec<Moments>,
    pub epsilon: f32,
}

impl Backward<Flex, 3> for LayerNormStep {
    type State = NormalizedRows;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let NormalizedRows { x, gamma, beta, moments, epsilon } = ops.state;
        let norm = LayerNormRows { gamma: data(&gamma), beta: data(&beta), epsilon };
        let mut grad_input = contiguous(grads.consume::<Flex>(&ops.node));
        let (grad_gamma, grad_beta) = norm.backward(&moments, data(&x), grad_input.storage_mut());
        let per_column = |data: Vec<f32>| tensor(data, gamma.layout().shape().clone());
        for (parent, grad) in ops.parents.into_iter().zip([grad_input, per_column(grad_gamma), per_column(grad_beta)]) {
            if let Some(parent) = parent {
                grads.register::<Flex>(parent.id, grad);
            }
        }
    }
}

/// Backward step of the group norms; the parents are x, γ, β and, with FiLM, scale and shift.
#[derive(Debug)]
pub(crate) struct GroupNormStep;

/// Activations of a group norm saved for backward.
#[derive(Debug, Clone)]
pub(crate) struct Normalized {
    x: FlexTensor,
    parameters: Parameters,
    moments: Vec<Moments>,
    shape: GroupNormShape,
}

/// Group norm; saves activations for backward if a gradient is required.
pub(crate) fn group_norm<C, const N: usize>(
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
            let x = contiguous(x);
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
        let mut grad_input = contiguous(grads.consume::<Flex>(&ops.node));
        let sums = norm::backward(&shape, &affine, &moments, data(&x), grad_input.storage_mut());
        let grad_affine = norm::affine_gradients(channels, &affine, &sums);

        let per_channel = |data| tensor(data, Shape::from([channels]));
        let per_row = |data: Vec<f32>| tensor(data, Shape::from([sums.len() / channels, channels]));
        let mut parent_grads = vec![grad_input, per_channel(grad_affine.gamma), per_channel(grad_affine.beta)];
        if let Some((scale, shift)) = grad_affine.film {
            parent_grads.extend([per_row(scale), per_row(shift)]);
        }
        for (parent, grad) in ops.parents.into_iter().zip(parent_grads) {
            if let Some(parent) = parent {
                grads.register::<Flex>(parent.id, grad);
            }
        }
    }
}
