//! Backward steps of permutations, concatenations and activations.

use burn::backend::autodiff::{
    checkpoint::base::Checkpointer,
    grads::Gradients,
    ops::{Backward, Ops, unary},
};
use burn::backend::{Flex, flex::FlexTensor};
use burn::tensor::Shape;

use super::super::Elementwise;
use super::super::elementwise;
use super::super::ops::{NnOps, contiguous, data, tensor};
use super::super::raw::columns;

/// Backward step of [`NnOps::swap_middle`].
#[derive(Debug)]
pub(crate) struct SwapMiddleStep;

impl Backward<Flex, 1> for SwapMiddleStep {
    type State = ();

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        unary::<Flex, _>(ops.parents, ops.node, grads, Flex::swap_middle);
    }
}

/// Backward step of [`NnOps::concat`].
#[derive(Debug)]
pub(crate) struct ConcatStep;

impl Backward<Flex, 2> for ConcatStep {
    type State = ([Shape; 2], usize);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (shapes, axis) = ops.state;
        let grad = contiguous(grads.consume::<Flex>(&ops.node));
        let rows = shapes[0][..axis].iter().product::<usize>();
        let mut first = 0;
        for (parent, shape) in ops.parents.into_iter().zip(shapes) {
            let width = shape[axis..].iter().product::<usize>();
            if let Some(parent) = parent {
                let part = columns(data(&grad), rows, first..first + width);
                grads.register::<Flex>(parent.id, tensor(part, shape));
            }
            first += width;
        }
    }
}

/// Backward step of [`NnOps::elementwise`].
#[derive(Debug)]
pub(crate) struct ElementwiseStep;

impl Backward<Flex, 1> for ElementwiseStep {
    type State = (FlexTensor, Elementwise);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (x, function) = ops.state;
        unary::<Flex, _>(ops.parents, ops.node, grads, |grad| {
            let mut grad = contiguous(grad);
            // Copies the gradient only if its storage is shared.
            elementwise::scale_by_slope(function, grad.storage_mut(), data(&contiguous(x)));
            grad
        });
    }
}
