//! Weights of 16 bits with activations in f32, for networks on the CPU.
//!
//! A processor has few fast operations on 16 bits beside products with weights, which is also where the memory goes. So
//! only the weights of linear and convolution layers are narrow; whatever is added to or normalised stays in f32.

use std::borrow::Cow;

use burn::module::{Module, ModuleMapper, Param};
use burn::nn::{Linear, conv::Conv2d};
use burn::prelude::*;
use burn::tensor::{DType, FloatDType};

use super::kernels::{self, NarrowSize};

/// Converts the weights of all [`Linear`] and [`Conv2d`] layers to f16 or bf16 and leaves every other parameter as it is.
///
/// [`linear`](super::linear) and [`conv2d`](super::conv2d) take such layers with `x` in f32. In bf16, and where the
/// processor has instructions for it (AVX-512 BF16 or AMX on x86), `x` is rounded to bf16 as well, and the products are
/// exact and summed in f32; the weights are laid out in memory as these instructions read them. Otherwise a weight is
/// widened to f32 while its layer runs.
pub fn narrow_weights<M: Module>(module: M, dtype: FloatDType) -> M {
    module.map(&mut Narrow::to(dtype))
}

/// [`narrow_weights`] as a mapper.
pub struct Narrow {
    dtype: FloatDType,
    /// Types of the modules on the way to the parameter.
    within: Vec<String>,
}

impl Narrow {
    /// Of f16 or bf16.
    pub fn to(dtype: FloatDType) -> Self {
        Self { dtype, within: Vec::new() }
    }
}

impl ModuleMapper for Narrow {
    fn enter_module(&mut self, _: &str, container_type: &str) {
        self.within.push(container_type.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.within.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (layer, dtype) = (self.within.last().map(String::as_str), self.dtype);
        let dims = param.dims();
        let (size, last) = match (layer, &dims[..]) {
            (Some("Struct:Linear"), &[inputs, outputs]) => (NarrowSize { inputs, outputs, taps: 1 }, 0),
            (Some("Struct:Conv2d"), &[outputs, inputs, h, w]) => (NarrowSize { inputs, outputs, taps: h * w }, 1),
            _ => return param,
        };
        if dtype != FloatDType::BF16 || !kernels::multiplies(size) {
            return param.map(|weight| kernels::narrowed(weight, dtype));
        }
        // The axis of the inputs becomes the last one in memory, and stays where it is for everyone else.
        param.map(|weight| kernels::narrowed(weight.movedim(last, D - 1), dtype).movedim(D - 1, last))
    }
}

/// `layer`, with its weight in f32 if that is narrower than inputs of type `x`.
pub(super) fn linear_for(layer: &Linear, x: DType) -> Cow<'_, Linear> {
    match is_narrower(layer.weight.val().dtype(), x) {
        true => Cow::Owned(Linear { weight: widened(&layer.weight), bias: layer.bias.clone() }),
        false => Cow::Borrowed(layer),
    }
}

/// `layer`, with its weight in f32 if that is narrower than inputs of type `x`.
pub(super) fn conv2d_for(layer: &Conv2d, x: DType) -> Cow<'_, Conv2d> {
    match is_narrower(layer.weight.val().dtype(), x) {
        true => {
            let mut wide = layer.clone();
            wide.weight = widened(&layer.weight);
            Cow::Owned(wide)
        }
        false => Cow::Borrowed(layer),
    }
}

fn is_narrower(weight: DType, x: DType) -> bool {
    x == DType::F32 && matches!(weight, DType::F16 | DType::BF16)
}

fn widened<const D: usize>(weight: &Param<Tensor<D>>) -> Param<Tensor<D>> {
    Param::from_tensor(kernels::widened(weight.val()))
}
