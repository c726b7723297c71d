//! Products with weights: linear layers, convolutions and embeddings.

use burn::backend::autodiff::{
    checkpoint::base::Checkpointer,
    grads::Gradients,
    ops::{Backward, Ops, unary},
};
use burn::backend::{Flex, flex::FlexTensor};
use burn::tensor::Shape;
use rayon::prelude::*;

use super::super::conv::{self, ConvShape};
use super::super::ops::{matrix, tensor, values, whole};
use super::super::parallel::WORTH_A_THREAD;
use super::super::raw::{Bias, Rows, Unwritten, matrix_product};
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
            tensor(sums_by_id(&ids, values(&grad), shape.dims()), shape)
        });
    }
}

/// A table with so many rows and columns, of which each row is the sum of those rows of `x` that have its number.
///
/// # Panics
/// If the table has no row of such a number.
fn sums_by_id(ids: &[usize], x: &[f32], [rows, width]: [usize; 2]) -> Vec<f32> {
    // By number, and of one number in the order in which they come.
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_by_key(|i| ids[*i]);
    assert!(order.last().is_none_or(|i| ids[*i] < rows), "the table has {rows} rows, and a number is not less");
    let mut table = Unwritten::new(rows, width);
    let in_turn = WORTH_A_THREAD.div_ceil(width.max(1));
    let pieces: Vec<Rows<'_>> = table.rows().chunks(in_turn).collect();
    pieces.into_par_iter().enumerate().for_each(|(piece, mut table)| {
        let zeros = vec![0.0; width];
        let mut sum = zeros.clone();
        let first = piece * in_turn;
        let mut rest = &order[order.partition_point(|i| ids[*i] < first)..];
        for row in 0..in_turn.min(rows - first) {
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
