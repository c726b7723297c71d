//! Casts and products of 16-bit weights as a backend extension, implemented for the CPU backend `Flex`.

use burn::backend::flex::FlexTensor;
use burn::backend::{Backend, Flex, backend_extension, ops::FloatTensorOps, tensor::FloatTensor};
use burn::tensor::{DType, FloatDType, Shape, TensorData};

use super::bf16::{self, Rows};
use super::conv::ConvShape;
use super::ops::{contiguous, data, data_range, tensor};
use super::raw::bf16::Instructions;

/// Casts of weights and products of f32 with 16-bit weights, without gradients.
#[backend_extension(Flex)]
pub(crate) trait Bf16Ops: Backend {
    /// Casts to f32.
    fn cast_to_f32(weight: FloatTensor<Self>) -> FloatTensor<Self>;

    /// Casts to f16 or bf16 with contiguous elements.
    fn cast_to_16_bits(weight: FloatTensor<Self>, dtype: FloatDType) -> FloatTensor<Self>;

    /// `x · weight + bias` of `[rows, inputs]`, `[inputs, outputs]` in bf16, fastest if column-major, and `[outputs]`.
    fn linear_bf16(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        with: Instructions,
    ) -> FloatTensor<Self>;

    /// [`NnOps::convolution`](super::ops::NnOps::convolution) with stride 1 and a bf16 weight,
    /// fastest if its input channels are innermost in memory.
    fn conv_bf16(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        shape: ConvShape,
        with: Instructions,
    ) -> FloatTensor<Self>;
}

impl Bf16Ops for Flex {
    fn cast_to_f32(weight: FlexTensor) -> FlexTensor {
        let weight = weight.to_contiguous();
        let shape = weight.layout().shape().clone();
        match weight.dtype() {
            DType::BF16 => tensor(bf16::cast_to_f32(&weight.storage::<half::bf16>()[data_range(&weight)]), shape),
            DType::F16 => tensor(bf16::cast_to_f32(&weight.storage::<half::f16>()[data_range(&weight)]), shape),
            _ => weight,
        }
    }

    fn cast_to_16_bits(weight: FlexTensor, dtype: FloatDType) -> FlexTensor {
        if weight.dtype() != DType::F32 {
            return Flex::float_cast(weight.to_contiguous(), dtype);
        }
        let has_negative_stride = weight.layout().strides().iter().any(|stride| *stride < 0);
        let weight = if has_negative_stride { weight.to_contiguous() } else { weight };
        let (shape, rows) = (weight.layout().shape().clone(), rows_of(&weight));
        let data = match dtype {
            FloatDType::BF16 => {
                TensorData::new(bf16::cast_to_16_bits(data(&weight), &rows, half::bf16::from_f32), shape)
            }
            FloatDType::F16 => TensorData::new(bf16::cast_to_16_bits(data(&weight), &rows, half::f16::from_f32), shape),
            _ => return Flex::float_cast(weight.to_contiguous(), dtype),
        };
        FlexTensor::from_data(data)
    }

    fn linear_bf16(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, with: Instructions) -> FlexTensor {
        let [x, bias] = [x, bias].map(contiguous);
        let [inputs, outputs] = weight.layout().shape().dims();
        let rows = x.layout().shape()[0];
        let weight = weight.transpose(0, 1).to_contiguous();
        let y = bf16::linear(with, [inputs, outputs], data(&x), &weight.storage()[data_range(&weight)], data(&bias));
        tensor(y, Shape::from([rows, outputs]))
    }

    fn conv_bf16(
        x: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        shape: ConvShape,
        with: Instructions,
    ) -> FlexTensor {
        let [x, bias] = [x, bias].map(contiguous);
        let weight = weight.permute(&[0, 2, 3, 1]).to_contiguous();
        let y = bf16::convolution(with, &shape, data(&x), &weight.storage()[data_range(&weight)], data(&bias));
        let [height, width] = shape.grid;
        tensor(y, Shape::from([shape.batch, shape.channels[1], height, width]))
    }
}

/// The rows along the last axis.
fn rows_of(x: &FlexTensor) -> Rows {
    let (shape, strides) = (x.layout().shape(), x.layout().strides());
    let mut starts = vec![x.layout().start_offset()];
    let last = shape.num_dims() - 1;
    for axis in 0..last {
        let along = |start: usize| (0..shape[axis]).map(move |i| start + i * strides[axis] as usize);
        starts = starts.into_iter().flat_map(along).collect();
    }
    Rows { starts, length: shape[last], step: strides[last] as usize }
}
