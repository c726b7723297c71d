//! Products with weights: linear layers, convolutions and embeddings.

use burn::backend::autodiff::{
    checkpoint::base::Checkpointer,
    grads::Gradients,
    ops::{Backward, Ops, unary},
};
use burn::backend::{Flex, flex::FlexTensor};
use burn::tensor::Shape;

use super::super::conv::{self, ConvShape};
use super::super::ops::{matrix, tensor, values, whole};
use super::super::raw::{Bias, matrix_product};
use super::super::rows;

/// Backward step of [`NnOps::linear`] and [`NnOps::linear_onto`], of which the residual is the fourth parent.
#[derive(Debug)]
pub struct LinearStep;

impl<const N: usize> Backward<Flex, N> for LinearStep {
    type State = (FlexTensor, FlexTensor);

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (x, weight) = ops.state;
        let mut parents = ops.parents.into_iter();
        let mut wanted = || parents.next().flatten();
        let grad = whole(grads.consume::<Flex>(&ops.node));
        if let Some(parent) = wanted() {
            let found = matrix_product(matrix(&grad), matrix(&weight).transposed(), Bias::None);
            grads.register::<Flex>(parent.id, tensor(found, x.layout().shape().clone()));
        }
        if let Some(parent) = wanted() {
            let found = matrix_product(matrix(&x).transposed(), matrix(&grad), Bias::None);
            grads.register::<Flex>(parent.id, tensor(found, weight.layout().shape().clone()));
        }
        if let Some(parent) = wanted() {
            let found = rows::column_sums(values(&grad), weight.layout().shape()[1]);
            grads.register::<Flex>(parent.id, tensor(found, Shape::from([weight.layout().shape()[1]])));
        }
        if let Some(parent) = wanted() {
            grads.register::<Flex>(parent.id, grad);
        }
    }
}

/// Backward step of [`NnOps::embedding_rows`].
#[derive(Debug)]
pub struct EmbeddingStep;

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

/// Backward step of [`NnOps::convolution`] and [`NnOps::convolution_onto`], of which the residual is the fourth parent.
#[derive(Debug)]
pub struct ConvStep;

impl<const N: usize> Backward<Flex, N> for ConvStep {
    type State = (FlexTensor, FlexTensor, ConvShape);

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (x, weight, shape) = ops.state;
        let mut parents = ops.parents.into_iter();
        let mut wanted = || parents.next().flatten();
        let [of_x, of_weight, of_bias, of_residual] = [(); 4].map(|()| wanted());
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
        if let Some(parent) = of_residual {
            grads.register::<Flex>(parent.id, grad);
        }
    }
}
