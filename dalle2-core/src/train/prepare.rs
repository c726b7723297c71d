//! Making a model ready to be trained.

use burn::module::{ModuleVisitor, Param};
use burn::prelude::*;

/// Draws the initial values of all parameters of `module` that have none yet, with the device's random numbers seeded by
/// `seed`.
///
/// Burn draws a parameter when it is first used; whatever random numbers are drawn before that change the model.
pub fn materialize<M: Module>(module: &M, device: &Device, seed: u64) {
    struct Touch;
    impl ModuleVisitor for Touch {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            param.val();
        }
    }
    device.seed(seed);
    module.visit(&mut Touch);
}
