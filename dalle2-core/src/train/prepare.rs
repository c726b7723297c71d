//! Making a model ready to be trained.

use burn::module::{ModuleVisitor, Param};
use burn::prelude::*;

/// Initialises all lazy parameters of `module`, with the device's random numbers seeded by `seed`.
///
/// Burn initialises a parameter at its first use, so random numbers used before that would change the model.
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
