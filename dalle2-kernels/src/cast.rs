//! Weights in f16 or bf16 with activations in f32, for networks on the CPU.
//!
//! The only fast 16-bit operations of a CPU are products with weights, and weights take most of the memory. Only the
//! weights of linear and convolution layers are cast; biases, norms and activations stay in f32.

use std::borrow::Cow;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Linear, LinearConfig};
use burn::prelude::*;
use burn::tensor::{DType, FloatDType};

use super::kernels::{self, WeightShape};

/// Casts the weights of all [`Linear`] and [`Conv2d`] layers to f16 or bf16 and leaves every other parameter as it is.
///
/// [`linear`](super::linear) and [`conv2d`](super::conv2d) take such layers with `x` in f32. In bf16 on a processor
/// with AVX-512 BF16 or AMX, `x` is rounded to bf16 as well, and the products are exact and summed in f32; the weights
/// are stored in the memory order of these instructions. Otherwise a layer casts its weight to f32
/// each time it runs.
pub fn cast_weights<M: Module>(module: M, dtype: FloatDType) -> M {
    module.map(&mut CastWeights::to(dtype))
}

/// [`cast_weights`] as a mapper.
pub struct CastWeights {
    dtype: FloatDType,
    containers: Option<Containers>,
    /// Containers from the root to the current parameter.
    path: Vec<String>,
}

/// The container names that Burn's traversal reports for the parameters of the layers to cast.
struct Containers {
    linear: String,
    conv2d: String,
}

impl Containers {
    /// Reads the containers from a traversal of one layer per type, whose parameters stay unallocated.
    fn read(device: &Device) -> Self {
        Self {
            linear: container(&LinearConfig::new(1, 1).init(device)),
            conv2d: container(&Conv2dConfig::new([1, 1], [1, 1]).init(device)),
        }
    }
}

/// The container of a layer's parameters.
fn container<M: Module>(layer: &M) -> String {
    #[derive(Default)]
    struct Last(String);

    impl ModuleVisitor for Last {
        fn enter_module(&mut self, _: &str, container_type: &str) {
            container_type.clone_into(&mut self.0);
        }
    }

    let mut last = Last::default();
    layer.visit(&mut last);
    last.0
}

impl CastWeights {
    /// Creates a mapper that casts to `dtype`, f16 or bf16.
    pub fn to(dtype: FloatDType) -> Self {
        Self { dtype, containers: None, path: Vec::new() }
    }
}

impl ModuleMapper for CastWeights {
    fn enter_module(&mut self, _: &str, container_type: &str) {
        self.path.push(container_type.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(layer) = self.path.last() else { return param };
        let containers = self.containers.get_or_insert_with(|| Containers::read(&param.lazy_device()));
        let dims = param.dims();
        let (shape, input_axis) = match dims[..] {
            [inputs, outputs] if *layer == containers.linear => (WeightShape { inputs, outputs, taps: 1 }, 0),
            [outputs, inputs, h, w] if *layer == containers.conv2d => (WeightShape { inputs, outputs, taps: h * w }, 1),
            _ => return param,
        };
        let dtype = self.dtype;
        if dtype != FloatDType::BF16 || !kernels::multiplies_bf16(shape) {
            return param.map(|weight| kernels::cast_to_16_bits(weight, dtype));
        }
        // The input axis becomes the innermost one in memory; the axes of the tensor keep their order.
        param
            .map(|weight| kernels::cast_to_16_bits(weight.movedim(input_axis, D - 1), dtype).movedim(D - 1, input_axis))
    }
}

/// `layer` with its weight cast to f32 if the weight has 16 bits and `x` is f32.
pub(super) fn linear_for(layer: &Linear, x: DType) -> Cow<'_, Linear> {
    if !has_fewer_bits(layer.weight.val().dtype(), x) {
        return Cow::Borrowed(layer);
    }
    Cow::Owned(Linear { weight: in_f32(&layer.weight), bias: layer.bias.clone() })
}

/// `layer` with its weight cast to f32 if the weight has 16 bits and `x` is f32.
pub(super) fn conv2d_for(layer: &Conv2d, x: DType) -> Cow<'_, Conv2d> {
    if !has_fewer_bits(layer.weight.val().dtype(), x) {
        return Cow::Borrowed(layer);
    }
    Cow::Owned(Conv2d { weight: in_f32(&layer.weight), ..layer.clone() })
}

fn has_fewer_bits(weight: DType, x: DType) -> bool {
    x == DType::F32 && matches!(weight, DType::F16 | DType::BF16)
}

fn in_f32<const D: usize>(weight: &Param<Tensor<D>>) -> Param<Tensor<D>> {
    Param::from_tensor(kernels::cast_to_f32(weight.val()))
}
