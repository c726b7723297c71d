//! Mixed precision: f32 master weights, networks that compute in a narrower type.

use burn::module::{ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::tensor::{DType, FloatDType};
use serde::{Deserialize, Serialize};

use dalle2_core::ConfigError;

/// The element type in which forward and backward pass run.
///
/// Weights, gradients once they are summed, the optimizer's moments and the average of the weights are f32 in any case,
/// and so are checkpoints. In the 16-bit types every step works on a copy of the weights; the model must cast what it reads to
/// the type of its weights, as those of this library do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    F32,
    /// 16-bit floats with the range of 32-bit ones.
    Bf16,
    /// 16-bit floats with a smaller range and more digits. The loss is scaled, see [`LossScaling`](super::LossScaling), which a
    /// model must [support](super::TrainTask::scaled_step).
    F16,
}

impl Precision {
    /// Whether the device can compute so.
    pub(super) fn check(self, device: &Device) -> Result<(), ConfigError> {
        match self.narrow() {
            Some((dtype, name)) if !device.supports_dtype(dtype) => {
                let expected = format!("{device:?} has no 16-bit floats of this kind: leave f32");
                Err(ConfigError::new("train.precision", name, expected))
            }
            _ => Ok(()),
        }
    }

    /// The 16-bit type and its name, if it is one.
    fn narrow(self) -> Option<(FloatDType, &'static str)> {
        match self {
            Self::F32 => None,
            Self::Bf16 => Some((FloatDType::BF16, "bf16")),
            Self::F16 => Some((FloatDType::F16, "f16")),
        }
    }

    /// The model that computes: `model` itself, or a copy with leaves of its own.
    pub(super) fn working<M: Module>(self, model: &M) -> M {
        match self.narrow() {
            None => model.clone(),
            Some((dtype, _)) => model.clone().map(&mut Narrow(dtype)),
        }
    }

    /// The gradients of the working model for `model`.
    pub(super) fn widen<M: Module>(self, mut grads: GradientsParams, model: &M) -> GradientsParams {
        if self.narrow().is_some() {
            model.visit(&mut Widen { grads: &mut grads });
        }
        grads
    }
}

struct Narrow(FloatDType);

impl ModuleMapper for Narrow {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|value| {
            let tracked = value.is_require_grad();
            value.cast(self.0).detach().set_require_grad(tracked)
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
