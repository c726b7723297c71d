//! Making a model ready to be trained.

use burn::module::{ModuleVisitor, Param};
use burn::prelude::*;
use dalle2_core::train::materialize;

use dalle2_core::{ConfigError, Error, Result};

/// Initialises missing parameters, and returns the device of the model if the model can be trained there.
pub(super) fn prepare<M: Module>(model: &M, seed: u64) -> Result<Device> {
    let Some(device) = model.devices().pop() else {
        return Err(Error::Training("the model lacks parameters".into()));
    };
    materialize(model, &device, seed);
    let mut survey = Survey::default();
    model.visit(&mut survey);
    match survey {
        Survey { device: Some(device), trained: true } => Ok(device),
        Survey { device: Some(_), trained: false } => {
            Err(Error::Training("all parameters of the model are frozen".into()))
        }
        Survey { device: None, .. } => {
            let expected = "the model must be built on an autodiff device: `config.init(&device.autodiff())`";
            Err(ConfigError::new("device", format!("{device:?}"), expected).into())
        }
    }
}

/// Looks for an autodiff device and for a parameter that is trained.
#[derive(Default)]
struct Survey {
    device: Option<Device>,
    trained: bool,
}

impl ModuleVisitor for Survey {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let device = param.val().device();
        if device.is_autodiff() {
            self.device = Some(device);
        }
        self.trained |= param.is_require_grad();
    }
}
