//! Without the CPU backend nothing applies.

use burn::nn::{Embedding, GroupNorm, Linear, conv::Conv2d};
use burn::prelude::*;
use burn::tensor::FloatDType;

use super::{ConvInput, Elementwise, WeightShape};

pub fn keep_freed() -> bool {
    false
}

pub fn multiplies_bf16(_: WeightShape) -> bool {
    false
}

pub fn cast_to_f32<const D: usize>(weight: Tensor<D>) -> Tensor<D> {
    weight.cast(FloatDType::F32)
}

pub fn cast_to_16_bits<const D: usize>(weight: Tensor<D>, dtype: FloatDType) -> Tensor<D> {
    weight.cast(dtype)
}

pub fn linear_bf16(_: &Linear, x: Tensor<2>) -> Result<Tensor<2>, Tensor<2>> {
    Err(x)
}

pub fn linear(_: &Linear, x: Tensor<2>) -> Result<Tensor<2>, Tensor<2>> {
    Err(x)
}

pub fn linear_onto(_: &Linear, x: Tensor<2>, residual: Tensor<2>) -> Result<Tensor<2>, [Tensor<2>; 2]> {
    Err([x, residual])
}

pub fn embedding(_: &Embedding, ids: Tensor<2, Int>) -> Result<Tensor<3>, Tensor<2, Int>> {
    Err(ids)
}

pub fn swapped(x: Tensor<4>) -> Result<Tensor<4>, Tensor<4>> {
    Err(x)
}

pub fn joined(a: Tensor<4>, b: Tensor<4>, _: usize) -> Result<Tensor<4>, [Tensor<4>; 2]> {
    Err([a, b])
}

pub fn conv_bf16(_: &Conv2d, x: Tensor<4>) -> Result<Tensor<4>, Tensor<4>> {
    Err(x)
}

pub fn activation<const D: usize>(_: Elementwise, x: Tensor<D>) -> Result<Tensor<D>, Tensor<D>> {
    Err(x)
}

pub fn group_norm(
    _: &GroupNorm,
    x: Tensor<4>,
    _: Option<(&Tensor<2>, &Tensor<2>)>,
    _: bool,
) -> Result<Tensor<4>, Tensor<4>> {
    Err(x)
}

pub fn convolution(_: &Conv2d, input: ConvInput) -> Result<Tensor<4>, ConvInput> {
    Err(input)
}

pub fn layer_norm<const D: usize>(_: &LayerNorm, x: Tensor<D>) -> Result<Tensor<D>, Tensor<D>> {
    Err(x)
}

pub fn attention(_: &Tensor<4>, _: &Tensor<4>, _: &Tensor<4>, _: Option<&Tensor<4, Bool>>) -> Option<Tensor<4>> {
    None
}
