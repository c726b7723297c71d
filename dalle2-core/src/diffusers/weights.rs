//! A model's weights inside a diffusers pipeline.

use std::path::Path;

use burn::module::Module;

use super::WEIGHTS_STEM;
use crate::store::{self, Weights};
use crate::{FloatType, Reading, Result};

/// Reads a module, or compares it, as [`Reading::module`] does it, from a model's folder. The weights may have any of the
/// names that [`store::find_weights`] knows.
///
/// # Errors
/// As [`store::load_module_from`].
pub fn load_weights<M: Module>(reading: Reading, module: M, dir: &Path, rename: &dyn Fn(&str) -> String) -> Result<M> {
    reading.module(module, &Weights::find(dir, &[WEIGHTS_STEM])?, rename)
}

/// Writes a module into a model's folder.
///
/// # Errors
/// As [`store::save_module_as`].
pub fn save_weights<M: Module>(
    module: &M,
    dir: &Path,
    float_type: FloatType,
    rename: &dyn Fn(&str) -> String,
) -> Result<()> {
    let path = dir.join(format!("{WEIGHTS_STEM}.safetensors"));
    store::save_module_as(module, path, float_type, &Default::default(), rename)
}
