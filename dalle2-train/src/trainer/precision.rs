//! Mixed precision: f32 master weights, forward and backward pass on a copy in a 16-bit type.

use burn::module::{ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::tensor::{DType, FloatDType};

use dalle2_core::{ConfigError, FloatType};

/// Checks that the device computes in the type.
pub(super) fn check(float_type: FloatType, device: &Device) -> Result<(), ConfigError> {
    if float_type == FloatType::F32 || device.supports_dtype(float_type.dtype()) {
        return Ok(());
    }
    let expected = format!("{device:?} does not compute in it: use f32");
    Err(ConfigError::new("train.precision", float_type, expected))
}

/// Returns the model of a step: `model` itself in f32, otherwise a copy with parameters of its own in the type.
pub(super) fn cast_model<M: Module>(model: &M, float_type: FloatType) -> M {
    match float_type {
        FloatType::F32 => model.clone(),
        _ => model.clone().map(&mut CastParameters(float_type.dtype())),
    }
}

/// Casts the gradients of a [cast model](cast_model) to f32.
pub(super) fn cast_gradients<M: Module>(
    mut grads: GradientsParams,
    model: &M,
    float_type: FloatType,
) -> GradientsParams {
    if float_type != FloatType::F32 {
        model.visit(&mut CastGradients { grads: &mut grads });
    }
    grads
}

struct CastParameters(FloatDType);

impl ModuleMapper for CastParameters {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|value| {
            let tracked = value.is_require_grad();
            value.cast(self.0).detach().set_require_grad(tracked)
        })
    }
}

struct CastGradients<'a> {
    grads: &'a mut GradientsParams,
}

impl ModuleVisitor for CastGradients<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(grad) = self.grads.remove::<D>(param.id) else { return };
        let grad = if grad.dtype() == DType::F32 { grad } else { grad.cast(FloatDType::F32) };
        self.grads.register(param.id, grad);
    }
}
