//! What the tests of checkpoints have in common.
#![allow(dead_code, reason = "no test uses all of it")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};

/// A directory below `tests/fixtures`.
pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Copies what is in a directory into another one, over what is there.
pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_dir(&entry.path(), &target),
            false => std::fs::copy(entry.path(), target).map(|_| ()).unwrap(),
        }
    }
}

/// A copy of a checkpoint's text-to-image pipeline.
pub fn text_to_image(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy_dir(&fixture(name).join("pipeline"), dir.path());
    dir
}

/// A checkpoint's image-variation pipeline, with the parts that both kinds share.
pub fn image_variation(name: &str) -> tempfile::TempDir {
    let dir = text_to_image(name);
    copy_dir(&fixture(name).join("image_variation"), dir.path());
    for folder in ["prior", "prior_scheduler"] {
        std::fs::remove_dir_all(dir.path().join(folder)).unwrap();
    }
    dir
}

/// A tensor as it stands in a file.
pub type Raw = (Dtype, Vec<usize>, Vec<u8>);

/// The tensors of a file.
pub fn tensors(path: &Path) -> BTreeMap<String, Raw> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensors()
        .into_iter()
        .map(|(name, view)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
        .collect()
}

/// Writes tensors to a file.
pub fn write_tensors(path: &Path, tensors: &BTreeMap<String, Raw>) {
    let views: Vec<(&String, TensorView<'_>)> = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()))
        .collect();
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Changes the values of a file of 32-bit floats.
pub fn edit_tensors(path: &Path, edit: impl Fn(&str, &mut [f32])) {
    let mut tensors = tensors(path);
    for (name, (_, _, bytes)) in &mut tensors {
        let mut values: Vec<f32> = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        edit(name, &mut values);
        *bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    }
    write_tensors(path, &tensors);
}

/// Every file below a directory, by its path in it.
pub fn files(dir: &Path) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().into_owned();
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files(&entry.path()).into_iter().map(|(path, file)| (format!("{name}/{path}"), file))),
            false => {
                found.insert(name, entry.path());
            }
        }
    }
    found
}
