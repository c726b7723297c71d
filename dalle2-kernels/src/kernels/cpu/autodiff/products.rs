//! Backward steps of linear layers, convolutions and embeddings.

use burn::backend::autodiff::{
    checkpoint::base::Checkpointer,
    grads::Gradients,
    ops::{Backward, Ops, unary},
};
use burn::backend::{Flex, flex::FlexTensor};
use burn::tensor::Shape;
use rayon::prelude::*;

use super::super::conv::{self, ConvShape};
use super::super::ops::{contiguous, data, matrix, tensor};
use super::super::parallel::MIN_PARALLEL_LEN;
use super::super::raw::{Bias, Rows, UninitRows, matrix_product};
use super::super::rows;

/// Backward step of [`NnOps::linear`](super::super::ops::NnOps::linear) and [`NnOps::linear_add`](super::super::ops::NnOps::linear_add); the
/// fourth parent is the residual.
#[derive(Debug)]
pub(crate) struct LinearStep;

impl<const N: usize> Backward<Flex, N> for LinearStep {
    type State = (FlexTensor, FlexTensor);

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (x, weight) = ops.state;
        let mut parents = ops.parents.into_iter();
        let [input_parent, weight_parent, bias_parent, residual_parent] = [(); 4].map(|()| parents.next().flatten());
        let grad_output = contiguous(grads.consume::<Flex>(&ops.node));
        if let Some(parent) = input_parent {
            let grad_input = matrix_product(matrix(&grad_output), matrix(&weight).transposed(), Bias::None);
            grads.register::<Flex>(parent.id, tensor(grad_input, x.layout().shape().clone()));
        }
        if let Some(parent) = weight_parent {
            let grad_weight = matrix_product(matrix(&x).transposed(), matrix(&grad_output), Bias::None);
            grads.register::<Flex>(parent.id, tensor(grad_weight, weight.layout().shape().clone()));
        }
        if let Some(parent) = bias_parent {
            let outputs = weight.layout().shape()[1];
            let grad_bias = rows::column_sums(data(&grad_output), outputs);
            grads.register::<Flex>(parent.id, tensor(grad_bias, Shape::from([outputs])));
        }
        if let Some(parent) = residual_parent {
            grads.register::<Flex>(parent.id, grad_output);
        }
    }
}

/// Backward step of [`NnOps::embedding_rows`](super::super::ops::NnOps::embedding_rows).
#[derive(Debug)]
pub(crate) struct EmbeddingStep;

impl Backward<Flex, 1> for EmbeddingStep {
    type State = (Vec<usize>, Shape);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (ids, shape) = ops.state;
        unary::<Flex, _>(ops.parents, ops.node, grads, |grad| {
            let grad = contiguous(grad);
            tensor(sums_by_id(&ids, data(&grad), shape.dims()), shape)
        });
    }
}

/// Adds each row of `x` to the row of its id in a table of zeros.
///
/// # Panics
/// If an id is not less than the rows of the table.
fn sums_by_id(ids: &[usize], x: &[f32], [rows, width]: [usize; 2]) -> Vec<f32> {
    // A stable sort: equal ids stay in their order, which fixes the order of sums.
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_by_key(|i| ids[*i]);
    assert!(order.last().is_none_or(|i| ids[*i] < rows), "embedding: an id is not below the {rows} rows of the table");
    let mut table = UninitRows::new(rows, width);
    let rows_per_task = MIN_PARALLEL_LEN.div_ceil(width.max(1));
    let tasks: Vec<Rows<'_>> = table.rows().chunks(rows_per_task).collect();
    tasks.into_par_iter().enumerate().for_each(|(task, mut table)| {
        let zeros = vec![0.0; width];
        let mut sum = zeros.clone();
        let first = task * rows_per_task;
        let mut rest = &order[order.partition_point(|i| ids[*i] < first)..];
        for row in 0..rows_per_task.min(rows - first) {
            let count = rest.partition_point(|i| ids[*i] == first + row);
            let (these, others) = rest.split_at(count);
            rest = others;
            if these.is_empty() {
                table.write([row, 0], &zeros);
                continue;
            }
            sum.fill(0.0);
            for i in these {
                sum.iter_mut().zip(&x[i * width..][..width]).for_each(|(sum, x)| *sum += x);
            }
            table.write([row, 0], &sum);
        }
    });
    table.finish()
}

/// Backward step of [`NnOps::convolution`](super::super::ops::NnOps::convolution) and [`NnOps::conv2d_add`](super::super::ops::NnOps::conv2d_add);
/// the fourth parent is the residual.
#[derive(Debug)]
pub(crate) struct ConvStep;

impl<const N: usize> Backward<Flex, N> for ConvStep {
    type State = (FlexTensor, FlexTensor, ConvShape);

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (x, weight, shape) = ops.state;
        let mut parents = ops.parents.into_iter();
        let [input_parent, weight_parent, bias_parent, residual_parent] = [(); 4].map(|()| parents.next().flatten());
        let grad_output = contiguous(grads.consume::<Flex>(&ops.node));
        let needs = [input_parent.is_some(), weight_parent.is_some()];
        let gradients = conv::backward(&shape, data(&x), &weight, data(&grad_output), needs);
        if let (Some(parent), Some(grad_input)) = (input_parent, gradients.input) {
            grads.register::<Flex>(parent.id, tensor(grad_input, x.layout().shape().clone()));
        }
        if let (Some(parent), Some(grad_weight)) = (weight_parent, gradients.weight) {
            grads.register::<Flex>(parent.id, tensor(grad_weight, weight.layout().shape().clone()));
        }
        if let Some(parent) = bias_parent {
            let grad_bias = conv::grad_bias(&shape, data(&grad_output));
            grads.register::<Flex>(parent.id, tensor(grad_bias, Shape::from([shape.channels[1]])));
        }
        if let Some(parent) = residual_parent {
            grads.register::<Flex>(parent.id, grad_output);
        }
    }
}
