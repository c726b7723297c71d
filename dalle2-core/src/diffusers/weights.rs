//! A model's weights inside a diffusers pipeline.

use std::path::Path;

use burn::module::Module;

use super::WEIGHTS_STEM;
use crate::Result;
use crate::store::{self, Precision, Weights};

/// Loads a module, without autodiff, from a model's folder, where each parameter is found under the name that `rename`
/// gives to its field path. The weights may have any of the names that [`store::find_weights`] knows.
///
/// # Errors
/// As [`store::load_module_from`].
pub fn load_weights<M: Module>(module: M, dir: &Path, rename: &dyn Fn(&str) -> String) -> Result<M> {
    Ok(store::load_module_from(module, &Weights::find(dir, &[WEIGHTS_STEM])?, rename)?.valid())
}

/// Writes a module into a model's folder.
///
/// # Errors
/// As [`store::save_module_as`].
pub fn save_weights<M: Module>(
    module: &M,
    dir: &Path,
    precision: Precision,
    rename: &dyn Fn(&str) -> String,
) -> Result<()> {
    let path = dir.join(format!("{WEIGHTS_STEM}.safetensors"));
    store::save_module_as(module, path, precision, &Default::default(), rename)
}
