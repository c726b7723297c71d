//! Convolution and its gradients, as products with matrices of columns.
//!
//! With stride 1 the gradients of input and weights need the same columns, those of the output's gradient: the first
//! is their product with the weights, the second theirs with the input. With another stride, or if the input needs no
//! gradient, the columns are those of the input, as in the forward pass.

use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;
use rayon::prelude::*;

use super::super::super::Resample;
use super::ops::{tensor, values};
use super::panels::Matrix;
use super::parallel::zip_chunks;
use super::planes::Planes;
use super::raw::{Bias, add_products, matrix_product, matrix_products};
use super::unfold::{Block, Unfold, place};
use super::winograd;

/// A convolution without groups or dilation.
#[derive(Debug, Clone, Copy)]
pub struct ConvShape {
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
    /// What happens to the input before.
    pub resample: Resample,
    /// What happens to a residual before it is added.
    pub residual: Resample,
}

/// Gradients of a convolution, those that were asked for.
#[derive(Debug, Default)]
pub struct ConvGradients {
    /// `[B, C_in, H, W]`
    pub x: Option<Vec<f32>>,
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

    /// Whether each pixel of the output is that of the input times the weights.
    pub fn is_pointwise(&self) -> bool {
        self.kernel == [1, 1] && self.stride == [1, 1] && self.padding == [0, 0] && self.image == self.grid
    }

    /// Offsets of the taps for the columns of the input, or mirrored for those of the output's gradient.
    fn offsets(&self, sign: isize) -> Vec<[isize; 2]> {
        let offset = |at: usize, axis: usize| sign * (at as isize - self.padding[axis] as isize);
        let [rows, columns] = self.kernel;
        (0..rows).flat_map(|row| (0..columns).map(move |column| [offset(row, 0), offset(column, 1)])).collect()
    }

    /// Columns of the input on the grid of the output.
    fn of_input(&self) -> Unfold {
        let (channels, taps) = (self.channels[0], self.offsets(1));
        Unfold { channels, image: self.image, grid: self.grid, stride: self.stride, taps }
    }

    /// Columns of the output's gradient on the grid of the input, for stride 1.
    fn of_gradient(&self) -> Unfold {
        let (channels, taps) = (self.channels[1], self.offsets(-1));
        Unfold { channels, image: self.grid, grid: self.image, stride: [1, 1], taps }
    }
}

/// The convolution of `x` `[B, C_in, H, W]` with `weight` `[C_out, C_in, kh, kw]`, plus `bias` `[C_out]` and `residual`
/// `[B, C_out, H', W']` if there is one, x and residual after the change of their resolution.
pub fn forward(shape: &ConvShape, x: &[f32], weight: &FlexTensor, bias: &[f32], residual: Option<&[f32]>) -> Vec<f32> {
    let x = Planes::new(x, shape.image, shape.resample);
    let residual = residual.map(|residual| Planes::new(residual, shape.grid, shape.residual));
    if winograd::applies(shape) {
        return winograd::forward(shape, x, values(weight), Some(bias), residual);
    }
    let x = x.kept_or_resampled();
    if shape.is_pointwise() {
        if let Some(residual) = residual {
            let mut y = residual.kept_or_resampled().into_owned();
            add_pointwise(shape, &x, weight, bias, &mut y);
            return y;
        }
        return matrix_products(shape.batch, pointwise(shape, &x, weight), Bias::OfRows(bias));
    }
    let mut y = by_columns(shape, &x, weight, bias);
    if let Some(residual) = residual {
        add(&mut y, &residual.kept_or_resampled());
    }
    y
}

/// The convolution by products with columns of the input, with nothing resampled or added.
pub fn by_columns(shape: &ConvShape, x: &[f32], weight: &FlexTensor, bias: &[f32]) -> Vec<f32> {
    let [from, to] = shape.channels;
    let weight = Matrix::new(values(weight), [to, from * shape.taps()]);
    let mut y = vec![0.0; shape.batch * to * shape.pixels()];
    let mut columns = Columns::new(shape.of_input());
    for block in Block::cover(shape.batch, shape.grid) {
        let product = matrix_product(weight, columns.of(x, &block), Bias::None);
        place(&product, Some(bias), &block, shape.grid, &mut y);
    }
    y
}

/// Adds the convolution to `y`, where [it is a product at each pixel](ConvShape::is_pointwise).
pub fn add_pointwise(shape: &ConvShape, x: &[f32], weight: &FlexTensor, bias: &[f32], y: &mut [f32]) {
    add_products(shape.batch, pointwise(shape, x, weight), Bias::OfRows(bias), y);
}

/// The factors of a product at each pixel, by image.
fn pointwise<'a>(shape: &ConvShape, x: &'a [f32], weight: &'a FlexTensor) -> impl Fn(usize) -> [Matrix<'a>; 2] + Sync {
    let ([from, to], pixels) = (shape.channels, shape.pixels());
    let weight = Matrix::new(values(weight), [to, from]);
    move |i| [weight, image(x, i, [from, pixels])]
}

/// The gradients of [`forward`] with nothing resampled, given that of its result.
pub fn backward(
    shape: &ConvShape,
    x: &[f32],
    weight: &FlexTensor,
    grad: &[f32],
    [wants_x, wants_weight]: [bool; 2],
) -> ConvGradients {
    let by_tiles = [winograd::applies(shape) && wants_x, winograd::applies_to_weights(shape) && wants_weight];
    let found = ConvGradients {
        x: by_tiles[0].then(|| winograd::input_gradient(shape, values(weight), grad)),
        weight: by_tiles[1].then(|| winograd::weight_gradient(shape, x, grad)),
    };
    let [wants_x, wants_weight] = [wants_x && !by_tiles[0], wants_weight && !by_tiles[1]];
    let rest = if !wants_x && !wants_weight {
        ConvGradients::default()
    } else if shape.is_pointwise() {
        backward_by_pixels(shape, x, values(weight), grad, [wants_x, wants_weight])
    } else if wants_x && shape.stride == [1, 1] {
        backward_by_gradient_columns(shape, x, weight, grad, wants_weight)
    } else {
        backward_by_input_columns(shape, x, weight, grad, [wants_x, wants_weight])
    };
    ConvGradients { x: found.x.or(rest.x), weight: found.weight.or(rest.weight) }
}

/// The pixels of image i as a matrix `[channels, pixels]`.
fn image(x: &[f32], i: usize, size: [usize; 2]) -> Matrix<'_> {
    Matrix::new(&x[i * size[0] * size[1]..][..size[0] * size[1]], size)
}

/// A product at every pixel: `dx = Wᵀ dy` and `dW = Σ dy xᵀ` over the images.
fn backward_by_pixels(
    shape: &ConvShape,
    x: &[f32],
    weight: &[f32],
    grad: &[f32],
    [wants_x, wants_weight]: [bool; 2],
) -> ConvGradients {
    let ([from, to], pixels) = (shape.channels, shape.pixels());
    let weight = Matrix::new(weight, [to, from]).transposed();
    let of_x = || matrix_products(shape.batch, |i| [weight, image(grad, i, [to, pixels])], Bias::None);
    let mut of_weight = Sum::default();
    for i in 0..if wants_weight { shape.batch } else { 0 } {
        let x = image(x, i, [from, pixels]).transposed();
        of_weight.add(matrix_product(image(grad, i, [to, pixels]), x, Bias::None));
    }
    ConvGradients { x: wants_x.then(of_x), weight: of_weight.0 }
}

/// Stride 1: with `G` the columns of the gradient, `dx = Wᵀ G` and `dW = G xᵀ`, W and dW with mirrored taps.
fn backward_by_gradient_columns(
    shape: &ConvShape,
    x: &[f32],
    weight: &FlexTensor,
    grad: &[f32],
    wants_weight: bool,
) -> ConvGradients {
    let [from, to] = shape.channels;
    let rows = to * shape.taps();
    // [C_out, C_in, kh, kw] -> [C_in, C_out · kh · kw]
    let weight = weight.reshape(Shape::from([to, from, shape.taps()])).permute(&[1, 0, 2]).to_contiguous();
    let weight = Matrix::new(values(&weight), [from, rows]);
    let mut of_x = vec![0.0; x.len()];
    let mut of_weight = Sum::default();
    let mut columns = Columns::new(shape.of_gradient());
    let mut pixels = Columns::new(Unfold {
        channels: from,
        image: shape.image,
        grid: shape.image,
        stride: [1, 1],
        taps: vec![[0, 0]],
    });
    for block in Block::cover(shape.batch, shape.image) {
        let columns = columns.of(grad, &block);
        place(&matrix_product(weight, columns, Bias::None), None, &block, shape.image, &mut of_x);
        if wants_weight {
            let pixels = pixels.of(x, &block).transposed(); // [C_in, pixels] -> [pixels, C_in]
            of_weight.add(matrix_product(columns, pixels, Bias::None)); // [C_out · kh · kw, C_in]
        }
    }
    let weight = of_weight.0.map(|sum| {
        let sum = tensor(sum, Shape::from([to, shape.taps(), from])).permute(&[0, 2, 1]).to_contiguous();
        values(&sum).to_vec()
    });
    ConvGradients { x: Some(of_x), weight }
}

/// With `X` the columns of the input, `dW = dy Xᵀ`, and `Wᵀ dy` are the columns of dx.
fn backward_by_input_columns(
    shape: &ConvShape,
    x: &[f32],
    weight: &FlexTensor,
    grad: &[f32],
    [wants_x, wants_weight]: [bool; 2],
) -> ConvGradients {
    let [from, to] = shape.channels;
    let weight = Matrix::new(values(weight), [to, from * shape.taps()]).transposed();
    let mut of_x = wants_x.then(|| vec![0.0; x.len()]);
    let mut of_weight = Sum::default();
    let mut columns = Columns::new(shape.of_input());
    let mut pixels =
        Columns::new(Unfold { channels: to, image: shape.grid, grid: shape.grid, stride: [1, 1], taps: vec![[0, 0]] });
    for block in Block::cover(shape.batch, shape.grid) {
        let grad = pixels.of(grad, &block); // [C_out, pixels]
        if let Some(of_x) = &mut of_x {
            columns.unfold.fold(&matrix_product(weight, grad, Bias::None), &block, of_x);
        }
        if wants_weight {
            of_weight.add(matrix_product(grad, columns.of(x, &block).transposed(), Bias::None));
        }
    }
    ConvGradients { x: of_x, weight: of_weight.0 }
}

/// Matrices of columns, of which one block after the other uses the same memory.
struct Columns {
    unfold: Unfold,
    memory: Vec<f32>,
}

impl Columns {
    fn new(unfold: Unfold) -> Self {
        Self { unfold, memory: Vec::new() }
    }

    /// The columns of a block, `[channels · taps, pixels]`.
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

/// Σ over batch and pixels of `grad` `[B, C_out, H, W]`: the gradient of the bias.
pub fn bias_gradient(shape: &ConvShape, grad: &[f32]) -> Vec<f32> {
    let plane = shape.grid[0] * shape.grid[1];
    let mut sums = vec![0.0f64; shape.channels[1]];
    let planes: Vec<f64> = grad.par_chunks(plane).map(super::norm::total).collect();
    for (i, plane) in planes.iter().enumerate() {
        sums[i % shape.channels[1]] += plane;
    }
    sums.into_iter().map(|sum| sum as f32).collect()
}
