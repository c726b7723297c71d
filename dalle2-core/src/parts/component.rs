//! A part of a pipeline on disk.

use std::path::Path;

use crate::{Error, FloatType, Result, diffusers::IndexEntry};

/// A part of a pipeline that can be saved.
///
/// A part without a file format can keep the default of [`Component::save`], which returns an error.
pub trait Component {
    /// The class name in `model_index.json` and in the part's `config.json`.
    fn class_name(&self) -> &str;

    /// Writes the configuration and the weights into `dir`.
    ///
    /// # Errors
    /// If a file cannot be written, a value exceeds the range of the type, or the part has no file format.
    fn save(&self, dir: &Path, float_type: FloatType) -> Result<()> {
        let _ = float_type;
        Err(Error::Mismatch(format!("{}: a {} has no file format", dir.display(), self.class_name())))
    }

    /// Lists the reasons that prevent writing the part in the layout of diffusers' unCLIP pipelines.
    fn diffusers_faults(&self) -> Vec<String> {
        vec![format!("diffusers has no {}", self.class_name())]
    }

    /// Writes the part's folders below `root` in the layout of diffusers' unCLIP pipelines, and returns their entries in
    /// `model_index.json`. Requires that [`Component::diffusers_faults`] is empty.
    ///
    /// # Errors
    /// If a file cannot be written, a value exceeds the range of the type, or the layout cannot express the part.
    fn save_diffusers(&self, root: &Path, float_type: FloatType) -> Result<Vec<IndexEntry>> {
        let _ = float_type;
        Err(Error::Mismatch(format!("{}: diffusers has no {}", root.display(), self.class_name())))
    }
}
