//! The kernels on tensors: checks, and conversion to the backend extension and back.

use burn::backend::{Dispatch, DispatchDevice};
use burn::module::Param;
use burn::nn::{Embedding, GroupNorm, Linear, PaddingConfig2d, conv::Conv2d};
use burn::prelude::*;
use burn::tensor::{DType, FloatDType};

use super::{bf16, bf16_ops::Bf16Ops, conv::ConvShape, norm::GroupNormShape, ops::NnOps, raw::bf16::Instructions};
use crate::kernels::{ConvInput, Elementwise, WeightShape, is_cpu, kernels_enabled};
use crate::{LayerNorm, Resample};

/// Whether the kernels apply to a tensor.
fn applies<const D: usize>(x: &Tensor<D>) -> bool {
    kernels_enabled() && x.dtype() == DType::F32 && x.shape().num_elements() != 0 && is_cpu(&x.device())
}

/// Whether products with weights of this shape run in bf16.
pub(crate) fn multiplies_bf16(size: WeightShape) -> bool {
    bf16::instructions(size).is_some()
}

/// The instruction set for a product of `x` in f32 with a bf16 weight, or `None` if it does not apply.
fn bf16_instructions<const D: usize>(x: &Tensor<D>, weight: DType, size: WeightShape) -> Option<Instructions> {
    let applies = applies(x) && !x.device().is_autodiff() && weight == DType::BF16;
    bf16::instructions(size).filter(|_| applies)
}

/// Casts a 16-bit weight to f32.
pub(crate) fn cast_to_f32<const D: usize>(weight: Tensor<D>) -> Tensor<D> {
    if matches!(weight.device().as_dispatch(), DispatchDevice::Flex(_)) {
        Tensor::from_dispatch(Dispatch::cast_to_f32(weight.into_dispatch()))
    } else {
        weight.cast(FloatDType::F32)
    }
}

/// Casts a weight to f16 or bf16 with contiguous elements.
pub(crate) fn cast_to_16_bits<const D: usize>(weight: Tensor<D>, dtype: FloatDType) -> Tensor<D> {
    if matches!(weight.device().as_dispatch(), DispatchDevice::Flex(_)) {
        Tensor::from_dispatch(Dispatch::cast_to_16_bits(weight.into_dispatch(), dtype))
    } else {
        weight.cast(dtype)
    }
}

/// A linear layer with a bf16 weight.
pub(crate) fn linear_bf16(layer: &Linear, x: Tensor<2>) -> Result<Tensor<2>, Tensor<2>> {
    let weight = layer.weight.val();
    let [inputs, outputs] = weight.dims();
    let Some(with) = bf16_instructions(&x, weight.dtype(), WeightShape { inputs, outputs, taps: 1 }) else {
        return Err(x);
    };
    let bias = bias(layer.bias.as_ref(), outputs, &x);
    let [x, weight, bias] = [x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch()];
    Ok(Tensor::from_dispatch(Dispatch::linear_bf16(x, weight, bias, with)))
}

/// A linear layer in f32, for `[rows, inputs]`.
pub(crate) fn linear(layer: &Linear, x: Tensor<2>) -> Result<Tensor<2>, Tensor<2>> {
    let weight = layer.weight.val();
    let ([_, inputs], [weight_inputs, outputs]) = (x.dims(), weight.dims());
    if inputs != weight_inputs || !(applies(&x) && applies(&weight)) {
        return Err(x);
    }
    let bias = bias(layer.bias.as_ref(), outputs, &x);
    let [x, weight, bias] = [x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch()];
    Ok(Tensor::from_dispatch(Dispatch::linear(x, weight, bias)))
}

/// [`linear`] plus a residual `[rows, outputs]`.
pub(crate) fn linear_add(layer: &Linear, x: Tensor<2>, residual: Tensor<2>) -> Result<Tensor<2>, [Tensor<2>; 2]> {
    let weight = layer.weight.val();
    let ([rows, inputs], [weight_inputs, outputs]) = (x.dims(), weight.dims());
    let fits = inputs == weight_inputs && residual.dims() == [rows, outputs];
    if !(fits && applies(&x) && applies(&weight) && applies(&residual)) {
        return Err([x, residual]);
    }
    let bias = bias(layer.bias.as_ref(), outputs, &x);
    let [x, weight, residual] = [x, weight, residual].map(|x| x.into_dispatch());
    Ok(Tensor::from_dispatch(Dispatch::linear_add(x, weight, bias.into_dispatch(), residual)))
}

/// The rows of a table in f32 for ids `[B, S]`.
pub(crate) fn embedding(layer: &Embedding, ids: Tensor<2, Int>) -> Result<Tensor<3>, Tensor<2, Int>> {
    let weight = layer.weight.val();
    // Only the gradient differs from Burn's operation, which copies the whole table for it.
    if !(applies(&weight) && weight.device().is_autodiff() && matches!(ids.dtype(), DType::I32 | DType::I64)) {
        return Err(ids);
    }
    Ok(Tensor::from_dispatch(Dispatch::embedding_rows(weight.into_dispatch(), ids.into_dispatch())))
}

/// `[A, B, C, D]` as `[A, C, B, D]`.
pub(crate) fn swap_middle(x: Tensor<4>) -> Result<Tensor<4>, Tensor<4>> {
    if !applies(&x) {
        return Err(x);
    }
    Ok(Tensor::from_dispatch(Dispatch::swap_middle(x.into_dispatch())))
}

/// Concatenates along an axis; the other axes must be equal.
pub(crate) fn concat(a: Tensor<4>, b: Tensor<4>, axis: usize) -> Result<Tensor<4>, [Tensor<4>; 2]> {
    let fits = (0..4).all(|i| i == axis || a.dims()[i] == b.dims()[i]);
    if !(fits && applies(&a) && applies(&b)) {
        return Err([a, b]);
    }
    Ok(Tensor::from_dispatch(Dispatch::concat(a.into_dispatch(), b.into_dispatch(), axis)))
}

/// A convolution layer of stride 1 with a bf16 weight.
pub(crate) fn conv_bf16(layer: &Conv2d, x: Tensor<4>) -> Result<Tensor<4>, Tensor<4>> {
    let weight = layer.weight.val();
    let Some(shape) = conv_shape(layer, x.dims(), weight.dims()) else { return Err(x) };
    let ([inputs, outputs], taps) = (shape.channels, shape.kernel[0] * shape.kernel[1]);
    let with = bf16_instructions(&x, weight.dtype(), WeightShape { inputs, outputs, taps });
    let Some(with) = with.filter(|_| shape.stride == [1, 1]) else { return Err(x) };
    let bias = bias(layer.bias.as_ref(), outputs, &x);
    let [x, weight, bias] = [x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch()];
    Ok(Tensor::from_dispatch(Dispatch::conv_bf16(x, weight, bias, shape, with)))
}

/// The bias of a layer, zeros if it has none.
fn bias<const D: usize>(bias: Option<&Param<Tensor<1>>>, outputs: usize, x: &Tensor<D>) -> Tensor<1> {
    match bias {
        Some(bias) => bias.val(),
        None => Tensor::zeros([outputs], (&x.device(), DType::F32)),
    }
}

/// An element-wise function of a tensor of any shape.
pub(crate) fn activation<const D: usize>(function: Elementwise, x: Tensor<D>) -> Result<Tensor<D>, Tensor<D>> {
    if !applies(&x) {
        return Err(x);
    }
    Ok(Tensor::from_dispatch(Dispatch::elementwise(x.into_dispatch(), function)))
}

/// Group norm, then FiLM by (scale, shift) `[B, C]` if given, then SiLU if `silu`.
pub(crate) fn group_norm(
    layer: &GroupNorm,
    x: Tensor<4>,
    film: Option<(&Tensor<2>, &Tensor<2>)>,
    silu: bool,
) -> Result<Tensor<4>, Tensor<4>> {
    let (Some(gamma), Some(beta)) = (&layer.gamma, &layer.beta) else { return Err(x) };
    let (gamma, beta) = (gamma.val(), beta.val());
    let film_applies = film.is_none_or(|(scale, shift)| applies(scale) && applies(shift));
    if !(applies(&x) && applies(&gamma) && applies(&beta) && film_applies) {
        return Err(x);
    }
    let [_, channels, h, w] = x.dims();
    let epsilon = layer.epsilon as f32;
    let shape = GroupNormShape { channels, groups: layer.num_groups, pixels: h * w, epsilon, silu };
    let [x, gamma, beta] = [x.into_dispatch(), gamma.into_dispatch(), beta.into_dispatch()];
    Ok(Tensor::from_dispatch(match film {
        Some((scale, shift)) => {
            let (scale, shift) = (scale.clone().into_dispatch(), shift.clone().into_dispatch());
            Dispatch::group_norm_film(x, gamma, beta, scale, shift, shape)
        }
        None => Dispatch::group_norm(x, gamma, beta, shape),
    }))
}

/// Layer norm over the last axis.
pub(crate) fn layer_norm<const D: usize>(layer: &LayerNorm, x: Tensor<D>) -> Result<Tensor<D>, Tensor<D>> {
    let (gamma, beta) = (layer.gamma.val(), layer.beta.val());
    let width = [x.dims()[D - 1]];
    let fits = gamma.dims() == width && beta.dims() == width;
    if !(fits && applies(&x) && applies(&gamma) && applies(&beta)) {
        return Err(x);
    }
    let [x, gamma, beta] = [x.into_dispatch(), gamma.into_dispatch(), beta.into_dispatch()];
    Ok(Tensor::from_dispatch(Dispatch::layer_norm_rows(x, gamma, beta, layer.epsilon as f32)))
}

/// Scaled dot-product attention, for a mask that is the same for each head.
pub(crate) fn attention(
    q: &Tensor<4>,
    k: &Tensor<4>,
    v: &Tensor<4>,
    mask: Option<&Tensor<4, Bool>>,
) -> Option<Tensor<4>> {
    if !(applies(q) && applies(k) && applies(v)) || mask.is_some_and(|mask| mask.dims()[1] != 1) {
        return None;
    }
    let ([_, _, s_q, width], s_k) = (q.dims(), k.dims()[2]);
    let scale = (width as f32).powf(-0.5);
    let [q, k, v] = [q, k, v].map(|x| x.clone().into_dispatch());
    Some(Tensor::from_dispatch(match mask {
        Some(mask) => {
            let mask = mask.clone().expand([mask.dims()[0], 1, s_q, s_k]).into_dispatch();
            Dispatch::masked_attention(q, k, v, mask, scale)
        }
        None => Dispatch::attention(q, k, v, scale),
    }))
}

/// A convolution layer without groups or dilation. Resampled tensors must not require gradients, and halved ones must have
/// even sides.
pub(crate) fn convolution(layer: &Conv2d, input: ConvInput) -> Result<Tensor<4>, ConvInput> {
    let weight = layer.weight.val();
    let Some(shape) = shape_of(layer, &input, weight.dims()).filter(|_| applies(&input.x) && applies(&weight)) else {
        return Err(input);
    };
    let bias = bias(layer.bias.as_ref(), shape.channels[1], &input.x);
    let [x, weight, bias] = [input.x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch()];
    Ok(Tensor::from_dispatch(match input.residual {
        Some((residual, _)) => Dispatch::conv2d_add(x, weight, bias, residual.into_dispatch(), shape),
        None => Dispatch::convolution(x, weight, bias, shape),
    }))
}

/// The shape of a convolution with its resampling and residual, or `None` if the kernels do not support it.
fn shape_of(layer: &Conv2d, input: &ConvInput, weight: [usize; 4]) -> Option<ConvShape> {
    let can_resample = !input.x.device().is_autodiff();
    let resampled = |x: &Tensor<4>, how: Resample| {
        let [b, c, h, w] = x.dims();
        match how {
            Resample::Keep => Some([b, c, h, w]),
            Resample::Down if can_resample && h % 2 == 0 && w % 2 == 0 => Some([b, c, h / 2, w / 2]),
            Resample::Up if can_resample => Some([b, c, 2 * h, 2 * w]),
            _ => None,
        }
    };
    let mut shape = conv_shape(layer, resampled(&input.x, input.resample)?, weight)?;
    shape.resample = input.resample;
    if let Some((residual, how)) = &input.residual {
        let ([height, width], channels) = (shape.grid, shape.channels[1]);
        let fits = resampled(residual, *how)? == [shape.batch, channels, height, width];
        if !fits || !applies(residual) {
            return None;
        }
        shape.residual = *how;
    }
    Some(shape)
}

/// The shape of a convolution, or `None` if the kernels do not support it.
fn conv_shape(layer: &Conv2d, x: [usize; 4], weight: [usize; 4]) -> Option<ConvShape> {
    let [batch, channels_in, height, width] = x;
    let (kernel, stride, image) = (layer.kernel_size, layer.stride, [height, width]);
    if layer.groups != 1 || layer.dilation != [1, 1] || weight[1] != channels_in {
        return None;
    }
    let (start, end) = match layer.padding {
        PaddingConfig2d::Valid => ([0, 0], [0, 0]),
        PaddingConfig2d::Explicit(top, left, bottom, right) => ([top, left], [bottom, right]),
        PaddingConfig2d::Same => {
            let total = [0, 1].map(|i| {
                let grid = image[i].div_ceil(stride[i]);
                ((grid - 1) * stride[i] + kernel[i]).saturating_sub(image[i])
            });
            (total.map(|total| total / 2), total.map(|total| total - total / 2))
        }
    };
    let side = |i: usize| Some((image[i] + start[i] + end[i]).checked_sub(kernel[i])? / stride[i] + 1);
    let (grid, channels) = ([side(0)?, side(1)?], [channels_in, weight[0]]);
    let [resample, residual] = [Resample::Keep; 2];
    Some(ConvShape { batch, channels, image, grid, kernel, stride, padding: start, resample, residual })
}
