//! Convolution and its gradients by im2col and matrix products, or by Winograd's method.
//!
//! With stride 1 both gradients use the columns of the output gradient: their product with the weights is the input
//! gradient, their product with the input the weight gradient. With another stride, or if only the weight gradient is
//! needed, the columns of the input serve as in the forward pass.

use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;
use rayon::prelude::*;

use super::super::super::Resample;
use super::ops::{data, tensor};
use super::panels::Matrix;
use super::parallel::zip_chunks;
use super::planes::Planes;
use super::raw::{Bias, add_products, matrix_product, matrix_products};
use super::unfold::{Block, Unfold, write_block};
use super::winograd;

/// A convolution without groups or dilation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConvShape {
    /// Images in the batch.
    pub batch: usize,
    /// Channels of input and output.
    pub channels: [usize; 2],
    /// \[H, W\] of the input.
    pub image: [usize; 2],
    /// \[H, W\] of the output.
    pub grid: [usize; 2],
    /// Size of the kernel.
    pub kernel: [usize; 2],
    /// Stride of the kernel.
    pub stride: [usize; 2],
    /// Padding above and to the left.
    pub padding: [usize; 2],
    /// Resampling of the input before the convolution.
    pub resample: Resample,
    /// Resampling of the residual before it is added.
    pub residual: Resample,
}

/// The requested gradients of a convolution.
#[derive(Debug, Default)]
pub(crate) struct ConvGradients {
    /// `[B, C_in, H, W]`
    pub input: Option<Vec<f32>>,
    /// `[C_out, C_in, kh, kw]`
    pub weight: Option<Vec<f32>>,
}

impl ConvShape {
    fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Pixels of the output.
    fn pixels(&self) -> usize {
        self.grid[0] * self.grid[1]
    }

    /// Whether this is a 1 × 1 convolution, a matrix product at each pixel.
    pub(crate) fn is_pointwise(&self) -> bool {
        self.kernel == [1, 1] && self.stride == [1, 1] && self.padding == [0, 0] && self.image == self.grid
    }

    /// Offsets of the taps: `sign` is 1 for columns of the input, −1 (mirrored) for columns of the output gradient.
    fn offsets(&self, sign: isize) -> Vec<[isize; 2]> {
        let offset = |at: usize, axis: usize| sign * (at as isize - self.padding[axis] as isize);
        let [rows, columns] = self.kernel;
        (0..rows).flat_map(|row| (0..columns).map(move |column| [offset(row, 0), offset(column, 1)])).collect()
    }

    /// The columns of the input on the grid of the output.
    fn input_unfold(&self) -> Unfold {
        let (channels, taps) = (self.channels[0], self.offsets(1));
        Unfold { channels, image: self.image, grid: self.grid, stride: self.stride, taps }
    }

    /// The columns of the output gradient on the grid of the input, for stride 1.
    fn grad_output_unfold(&self) -> Unfold {
        let (channels, taps) = (self.channels[1], self.offsets(-1));
        Unfold { channels, image: self.grid, grid: self.image, stride: [1, 1], taps }
    }
}

/// The convolution of `x` `[B, C_in, H, W]` with `weight` `[C_out, C_in, kh, kw]`, plus `bias` `[C_out]` and
/// `residual` `[B, C_out, H', W']` if given, after resampling `x` and `residual`.
pub(crate) fn forward(
    shape: &ConvShape,
    x: &[f32],
    weight: &FlexTensor,
    bias: &[f32],
    residual: Option<&[f32]>,
) -> Vec<f32> {
    let x = Planes::new(x, shape.image, shape.resample);
    let residual = residual.map(|residual| Planes::new(residual, shape.grid, shape.residual));
    if winograd::applies(shape) {
        return winograd::forward(shape, x, data(weight), Some(bias), residual);
    }
    let x = x.resampled();
    if shape.is_pointwise() {
        if let Some(residual) = residual {
            let mut y = residual.resampled().into_owned();
            add_pointwise(shape, &x, weight, bias, &mut y);
            return y;
        }
        return matrix_products(shape.batch, pointwise(shape, &x, weight), Bias::PerRow(bias));
    }
    let mut y = forward_im2col(shape, &x, weight, bias);
    if let Some(residual) = residual {
        add(&mut y, &residual.resampled());
    }
    y
}

/// The convolution by im2col, without resampling and residual.
pub(crate) fn forward_im2col(shape: &ConvShape, x: &[f32], weight: &FlexTensor, bias: &[f32]) -> Vec<f32> {
    let [from, to] = shape.channels;
    let weight = Matrix::new(data(weight), [to, from * shape.taps()]);
    let mut y = vec![0.0; shape.batch * to * shape.pixels()];
    let mut columns = Columns::new(shape.input_unfold());
    for block in Block::cover(shape.batch, shape.grid) {
        let product = matrix_product(weight, columns.of(x, &block), Bias::None);
        write_block(&product, Some(bias), &block, shape.grid, &mut y);
    }
    y
}

/// Adds a [pointwise](ConvShape::is_pointwise) convolution to `y`.
pub(crate) fn add_pointwise(shape: &ConvShape, x: &[f32], weight: &FlexTensor, bias: &[f32], y: &mut [f32]) {
    add_products(shape.batch, pointwise(shape, x, weight), Bias::PerRow(bias), y);
}

/// The factors of a pointwise convolution for each image.
fn pointwise<'a>(shape: &ConvShape, x: &'a [f32], weight: &'a FlexTensor) -> impl Fn(usize) -> [Matrix<'a>; 2] + Sync {
    let ([from, to], pixels) = (shape.channels, shape.pixels());
    let weight = Matrix::new(data(weight), [to, from]);
    move |i| [weight, image(x, i, [from, pixels])]
}

/// The gradients of [`forward`] without resampling, from the output gradient.
pub(crate) fn backward(
    shape: &ConvShape,
    x: &[f32],
    weight: &FlexTensor,
    grad: &[f32],
    [needs_input, needs_weight]: [bool; 2],
) -> ConvGradients {
    let by_tiles = [winograd::applies(shape) && needs_input, winograd::applies_to_grad_weight(shape) && needs_weight];
    let winograd = ConvGradients {
        input: by_tiles[0].then(|| winograd::grad_input(shape, data(weight), grad)),
        weight: by_tiles[1].then(|| winograd::grad_weight(shape, x, grad)),
    };
    let [needs_input, needs_weight] = [needs_input && !by_tiles[0], needs_weight && !by_tiles[1]];
    let rest = if !needs_input && !needs_weight {
        ConvGradients::default()
    } else if shape.is_pointwise() {
        backward_pointwise(shape, x, data(weight), grad, [needs_input, needs_weight])
    } else if needs_input && shape.stride == [1, 1] {
        backward_grad_output_columns(shape, x, weight, grad, needs_weight)
    } else {
        backward_input_columns(shape, x, weight, grad, [needs_input, needs_weight])
    };
    ConvGradients { input: winograd.input.or(rest.input), weight: winograd.weight.or(rest.weight) }
}

/// Image i as a matrix `[channels, pixels]`.
fn image(x: &[f32], i: usize, size: [usize; 2]) -> Matrix<'_> {
    Matrix::new(&x[i * size[0] * size[1]..][..size[0] * size[1]], size)
}

/// Pointwise: `dx = Wᵀ dy` and `dW = Σ dy xᵀ` over the images.
fn backward_pointwise(
    shape: &ConvShape,
    x: &[f32],
    weight: &[f32],
    grad: &[f32],
    [needs_input, needs_weight]: [bool; 2],
) -> ConvGradients {
    let ([from, to], pixels) = (shape.channels, shape.pixels());
    let weight = Matrix::new(weight, [to, from]).transposed();
    let grad_input = || matrix_products(shape.batch, |i| [weight, image(grad, i, [to, pixels])], Bias::None);
    let mut grad_weight = Sum::default();
    for i in 0..if needs_weight { shape.batch } else { 0 } {
        let x = image(x, i, [from, pixels]).transposed();
        grad_weight.add(matrix_product(image(grad, i, [to, pixels]), x, Bias::None));
    }
    ConvGradients { input: needs_input.then(grad_input), weight: grad_weight.0 }
}

/// Stride 1: with `G` the columns of the gradient, `dx = Wᵀ G` and `dW = G xᵀ`, W and dW with mirrored taps.
fn backward_grad_output_columns(
    shape: &ConvShape,
    x: &[f32],
    weight: &FlexTensor,
    grad: &[f32],
    needs_weight: bool,
) -> ConvGradients {
    let [from, to] = shape.channels;
    let rows = to * shape.taps();
    // [C_out, C_in, kh, kw] -> [C_in, C_out · kh · kw]
    let weight = weight.reshape(Shape::from([to, from, shape.taps()])).permute(&[1, 0, 2]).to_contiguous();
    let weight = Matrix::new(data(&weight), [from, rows]);
    let mut grad_input = vec![0.0; x.len()];
    let mut grad_weight = Sum::default();
    let mut columns = Columns::new(shape.grad_output_unfold());
    let mut pixels = Columns::new(Unfold {
        channels: from,
        image: shape.image,
        grid: shape.image,
        stride: [1, 1],
        taps: vec![[0, 0]],
    });
    for block in Block::cover(shape.batch, shape.image) {
        let columns = columns.of(grad, &block);
        write_block(&matrix_product(weight, columns, Bias::None), None, &block, shape.image, &mut grad_input);
        if needs_weight {
            let pixels = pixels.of(x, &block).transposed(); // [C_in, pixels] -> [pixels, C_in]
            grad_weight.add(matrix_product(columns, pixels, Bias::None)); // [C_out · kh · kw, C_in]
        }
    }
    let weight = grad_weight.0.map(|sum| {
        let sum = tensor(sum, Shape::from([to, shape.taps(), from])).permute(&[0, 2, 1]).to_contiguous();
        data(&sum).to_vec()
    });
    ConvGradients { input: Some(grad_input), weight }
}

/// With `X` the columns of the input, `dW = dy Xᵀ`, and `Wᵀ dy` are the columns of dx.
fn backward_input_columns(
    shape: &ConvShape,
    x: &[f32],
    weight: &FlexTensor,
    grad: &[f32],
    [needs_input, needs_weight]: [bool; 2],
) -> ConvGradients {
    let [from, to] = shape.channels;
    let weight = Matrix::new(data(weight), [to, from * shape.taps()]).transposed();
    let mut grad_input = needs_input.then(|| vec![0.0; x.len()]);
    let mut grad_weight = Sum::default();
    let mut columns = Columns::new(shape.input_unfold());
    let mut pixels =
        Columns::new(Unfold { channels: to, image: shape.grid, grid: shape.grid, stride: [1, 1], taps: vec![[0, 0]] });
    for block in Block::cover(shape.batch, shape.grid) {
        let grad = pixels.of(grad, &block); // [C_out, pixels]
        if let Some(grad_input) = &mut grad_input {
            columns.unfold.fold(&matrix_product(weight, grad, Bias::None), &block, grad_input);
        }
        if needs_weight {
            grad_weight.add(matrix_product(grad, columns.of(x, &block).transposed(), Bias::None));
        }
    }
    ConvGradients { input: grad_input, weight: grad_weight.0 }
}

/// im2col with one buffer for all blocks.
struct Columns {
    unfold: Unfold,
    memory: Vec<f32>,
}

impl Columns {
    fn new(unfold: Unfold) -> Self {
        Self { unfold, memory: Vec::new() }
    }

    /// Returns the columns of a block, `[channels · taps, pixels]`.
    fn of(&mut self, images: &[f32], block: &Block) -> Matrix<'_> {
        let size = [self.unfold.channels * self.unfold.taps.len(), block.pixels(self.unfold.grid[1])];
        self.memory.resize(size[0] * size[1], 0.0);
        self.unfold.unfold(images, block, &mut self.memory);
        Matrix::new(&self.memory, size)
    }
}

/// A sum of matrices of the same shape.
#[derive(Debug, Default)]
struct Sum(Option<Vec<f32>>);

impl Sum {
    fn add(&mut self, term: Vec<f32>) {
        match &mut self.0 {
            Some(sum) => add(sum, &term),
            sum => *sum = Some(term),
        }
    }
}

fn add(sum: &mut [f32], term: &[f32]) {
    zip_chunks(sum, term, |sum, term| sum.iter_mut().zip(term).for_each(|(sum, term)| *sum += term));
}

/// The bias gradient: Σ over batch and pixels of `grad` `[B, C_out, H, W]`.
pub(crate) fn grad_bias(shape: &ConvShape, grad: &[f32]) -> Vec<f32> {
    let plane = shape.grid[0] * shape.grid[1];
    let mut sums = vec![0.0f64; shape.channels[1]];
    let planes: Vec<f64> = grad.par_chunks(plane).map(super::norm::total).collect();
    for (i, plane) in planes.iter().enumerate() {
        sums[i % shape.channels[1]] += plane;
    }
    sums.into_iter().map(|sum| sum as f32).collect()
}
