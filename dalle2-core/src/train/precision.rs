//! Mixed precision: f32 master weights, networks that compute in a narrower type.

use burn::module::{ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::tensor::{DType, FloatDType};
use serde::{Deserialize, Serialize};

use crate::ConfigError;

/// The element type in which forward and backward pass run.
///
/// Weights, gradients once they are summed, the optimizer's moments and the average of the weights are f32 in any case,
/// and so are checkpoints. There is no choice of f16: its range needs a scaled loss, and Burn's `TrainStep` differentiates the
/// loss itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    F32,
    /// 16-bit floats with the range of 32-bit ones: every step works on a copy of the weights in this type. The model must
    /// cast what it reads to the type of its weights, as those of this library do.
    Bf16,
}

impl Precision {
    /// Whether the device can compute so.
    pub(super) fn check(self, device: &Device) -> Result<(), ConfigError> {
        match self {
            Self::F32 => Ok(()),
            Self::Bf16 if device.supports_dtype(FloatDType::BF16) => Ok(()),
            Self::Bf16 => {
                let expected = format!("{device:?} has no 16-bit floats of this kind: leave f32");
                Err(ConfigError::new("train.precision", "bf16", expected))
            }
        }
    }

    /// The model that computes: `model` itself, or a copy with leaves of its own.
    pub(super) fn working<M: Module>(self, model: &M) -> M {
        match self {
            Self::F32 => model.clone(),
            Self::Bf16 => model.clone().map(&mut Narrow),
        }
    }

    /// The gradients of the working model for `model`.
    pub(super) fn widen<M: Module>(self, mut grads: GradientsParams, model: &M) -> GradientsParams {
        if self == Self::Bf16 {
            model.visit(&mut Widen { grads: &mut grads });
        }
        grads
    }
}

struct Narrow;

impl ModuleMapper for Narrow {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|value| {
            let tracked = value.is_require_grad();
            value.cast(FloatDType::BF16).detach().set_require_grad(tracked)
        })
    }
}

struct Widen<'a> {
    grads: &'a mut GradientsParams,
}

impl ModuleVisitor for Widen<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(grad) = self.grads.remove::<D>(param.id) else { return };
        let grad = if grad.dtype() == DType::F32 { grad } else { grad.cast(FloatDType::F32) };
        self.grads.register(param.id, grad);
    }
}
