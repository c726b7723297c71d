//! Attention with gradients.

use burn::backend::autodiff::{
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::{Autodiff, Flex, flex::FlexTensor, tensor::BoolTensor, tensor::FloatTensor};
use burn::tensor::Shape;

use super::super::ops::{NnOps, Softmax, batch_matrix, contiguous, tensor};
use super::super::panels::Matrix;
use super::super::raw::{Bias, matrix_products};

/// Attention; saves its weights for backward if a gradient is required.
pub(crate) fn attend<C: CheckpointStrategy>(
    [q, k, v]: [FloatTensor<Autodiff<Flex, C>>; 3],
    mask: Option<BoolTensor<Flex>>,
    scale: f32,
) -> FloatTensor<Autodiff<Flex, C>> {
    let kind = AttentionStep.prepare::<C>([q.node(), k.node(), v.node()]).compute_bound().stateful();
    let [q, k, v] = [q, k, v].map(|x| x.into_primitive());
    match kind {
        OpsKind::Tracked(prep) => {
            let softmax = Softmax::new(mask, scale);
            let [q, k, v] = [q, k, v].map(contiguous);
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

/// The batched product of `f(a, b)` for each pair of matrices of `[B, heads, .., ..]`.
fn products(
    a: &FlexTensor,
    b: &FlexTensor,
    f: impl for<'a> Fn([Matrix<'a>; 2]) -> [Matrix<'a>; 2] + Sync,
) -> FlexTensor {
    let [items, heads, ..] = a.layout().shape().dims::<4>();
    let factors = |i| f([batch_matrix(a, i), batch_matrix(b, i)]);
    let [left, right] = factors(0);
    let size = [left.size()[0], right.size()[1]];
    tensor(matrix_products(items * heads, factors, Bias::None), Shape::from([items, heads, size[0], size[1]]))
}

/// Backward step of attention.
#[derive(Debug)]
struct AttentionStep;

/// Activations of attention saved for backward.
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
        let [grad_q, grad_k, grad_v] = ops.parents;
        let grad = contiguous(grads.consume::<Flex>(&ops.node));
        if let Some(parent) = grad_v {
            grads
                .register::<Flex>(parent.id, products(&weights, &grad, |[weights, grad]| [weights.transposed(), grad]));
        }
        if grad_q.is_none() && grad_k.is_none() {
            return;
        }
        let grad_weights = products(&grad, &v, |[grad, v]| [grad, v.transposed()]);
        let grad_scores = softmax.backward(&weights, grad_weights);
        if let Some(parent) = grad_k {
            grads.register::<Flex>(parent.id, products(&grad_scores, &q, |[scores, q]| [scores.transposed(), q]));
        }
        if let Some(parent) = grad_q {
            grads.register::<Flex>(parent.id, products(&grad_scores, &k, |factors| factors));
        }
    }
}
