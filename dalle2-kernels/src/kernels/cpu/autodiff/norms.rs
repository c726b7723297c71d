//! Norms.

use burn::backend::autodiff::{
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::{Autodiff, Flex, flex::FlexTensor, tensor::FloatTensor};
use burn::tensor::Shape;

use super::super::norm::{self, GroupNormShape, Moments};
use super::super::ops::{Parameters, normalize, tensor, values, whole};
use super::super::rows::LayerNormRows;

/// Backward step of [`NnOps::layer_norm_rows`].
#[derive(Debug)]
pub struct LayerNormStep;

/// What [`LayerNormStep`] keeps of the forward pass.
#[derive(Debug, Clone)]
pub struct NormalizedRows {
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

/// Backward step of the group norms; the parents are x, γ, β and, with FiLM, scale and shift.
#[derive(Debug)]
pub struct GroupNormStep;

/// What [`GroupNormStep`] keeps of the forward pass.
#[derive(Debug, Clone)]
pub struct Normalized {
    x: FlexTensor,
    parameters: Parameters,
    moments: Vec<Moments>,
    shape: GroupNormShape,
}

/// Computes the group norm, and keeps what its gradient needs if any is wanted.
pub fn run<C, const N: usize>(
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
