//! Placeholders for builds without the CPU kernels: no function applies.

use burn::nn::{Embedding, GroupNorm, Linear, conv::Conv2d};
use burn::prelude::*;
use burn::tensor::FloatDType;

use super::{ConvInput, Elementwise, WeightShape};
use crate::LayerNorm;

/// Does nothing without the kernels.
pub fn configure_allocator() -> bool {
    false
}

pub(crate) fn multiplies_bf16(_: WeightShape) -> bool {
    false
}

pub(crate) fn cast_to_f32<const D: usize>(weight: Tensor<D>) -> Tensor<D> {
    weight.cast(FloatDType::F32)
}

pub(crate) fn cast_to_16_bits<const D: usize>(weight: Tensor<D>, dtype: FloatDType) -> Tensor<D> {
    weight.cast(dtype)
}

pub(crate) fn linear_bf16(_: &Linear, x: Tensor<2>) -> Result<Tensor<2>, Tensor<2>> {
    Err(x)
}

pub(crate) fn linear(_: &Linear, x: Tensor<2>) -> Result<Tensor<2>, Tensor<2>> {
    Err(x)
}

pub(crate) fn linear_add(_: &Linear, x: Tensor<2>, residual: Tensor<2>) -> Result<Tensor<2>, [Tensor<2>; 2]> {
    Err([x, residual])
}

pub(crate) fn embedding(_: &Embedding, ids: Tensor<2, Int>) -> Result<Tensor<3>, Tensor<2, Int>> {
    Err(ids)
}

pub(crate) fn swap_middle(x: Tensor<4>) -> Result<Tensor<4>, Tensor<4>> {
    Err(x)
}

pub(crate) fn concat(a: Tensor<4>, b: Tensor<4>, _: usize) -> Result<Tensor<4>, [Tensor<4>; 2]> {
    Err([a, b])
}

pub(crate) fn conv_bf16(_: &Conv2d, x: Tensor<4>) -> Result<Tensor<4>, Tensor<4>> {
    Err(x)
}

pub(crate) fn activation<const D: usize>(_: Elementwise, x: Tensor<D>) -> Result<Tensor<D>, Tensor<D>> {
    Err(x)
}

pub(crate) fn group_norm(
    _: &GroupNorm,
    x: Tensor<4>,
    _: Option<(&Tensor<2>, &Tensor<2>)>,
    _: bool,
) -> Result<Tensor<4>, Tensor<4>> {
    Err(x)
}

pub(crate) fn convolution(_: &Conv2d, input: ConvInput) -> Result<Tensor<4>, ConvInput> {
    Err(input)
}

pub(crate) fn layer_norm<const D: usize>(_: &LayerNorm, x: Tensor<D>) -> Result<Tensor<D>, Tensor<D>> {
    Err(x)
}

pub(crate) fn attention(_: &Tensor<4>, _: &Tensor<4>, _: &Tensor<4>, _: Option<&Tensor<4, Bool>>) -> Option<Tensor<4>> {
    None
}
