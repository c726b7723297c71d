//! Finding the weights of a component among the names that the reference implementation gives them.

use std::path::{Path, PathBuf};

use super::Weights;
use crate::{Error, Result};

/// The weights files that a directory may hold under the name `base`, the preferred one first: safetensors before
/// PyTorch's pickles, full precision before the `fp16` variant, one file before several.
fn candidates(base: &str) -> Vec<String> {
    // PyTorch's file of a `model.safetensors` is called pytorch_model.bin; diffusers keeps the name.
    let pickle = if base == "model" { "pytorch_model" } else { base };
    let forms = [(base, "safetensors"), (pickle, "bin")];
    forms
        .iter()
        .flat_map(|(base, ending)| {
            [
                format!("{base}.{ending}"),
                format!("{base}.{ending}.index.json"),
                format!("{base}.fp16.{ending}"),
                format!("{base}.fp16.{ending}.index.json"),
                format!("{base}.{ending}.index.fp16.json"),
            ]
        })
        .collect()
}

/// The names under which a component's weights are looked for, the preferred one first: under each of `bases`
/// safetensors before PyTorch's pickles, full precision before the `fp16` variant, one file before the index of several.
pub fn weights_names(bases: &[&str]) -> Vec<String> {
    let names = bases.iter().flat_map(|base| candidates(base));
    // Whatever the name, a pickle is the last resort.
    let (mut safe, pickled): (Vec<_>, Vec<_>) = names.partition(|name| name.contains(".safetensors"));
    safe.extend(pickled);
    safe
}

/// The file that holds the weights of the component in `dir`, under one of the names `bases`, the preferred one first
/// (`model`, `diffusion_pytorch_model`, `open_clip_pytorch_model`).
///
/// # Errors
/// When there is none; the message lists the names that were looked for.
pub fn find_weights(dir: impl AsRef<Path>, bases: &[&str]) -> Result<PathBuf> {
    let dir = dir.as_ref();
    let names = weights_names(bases);
    let found = names.iter().map(|name| dir.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| Error::format(dir, format!("has no weights; looked for {}", names.join(", "))))
}

impl Weights {
    /// Opens the weights of the component in `dir`, see [`find_weights`].
    ///
    /// # Errors
    /// When there are none, or as [`Weights::open`].
    pub fn find(dir: impl AsRef<Path>, bases: &[&str]) -> Result<Self> {
        Self::open(find_weights(dir, bases)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn safe_and_precise_files_come_first() {
        let dir = tempfile::tempdir().unwrap();
        let bases = ["model", "diffusion_pytorch_model"];
        let error = find_weights(dir.path(), &bases).unwrap_err().to_string();
        for name in ["model.fp16.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors.index.json"] {
            assert!(error.contains(name), "{error}");
        }
        // Each one is preferred to all before it.
        for name in [
            "diffusion_pytorch_model.bin",
            "pytorch_model.fp16.bin",
            "pytorch_model.bin",
            "diffusion_pytorch_model.safetensors.index.fp16.json",
            "diffusion_pytorch_model.safetensors",
            "model.fp16.safetensors",
            "model.safetensors.index.json",
            "model.safetensors",
        ] {
            std::fs::write(dir.path().join(name), "").unwrap();
            assert_eq!(find_weights(dir.path(), &bases).unwrap(), dir.path().join(name));
        }
    }
}
