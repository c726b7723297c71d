//! Modules as safetensors files.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Tensor, TensorData};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::write_file;
use crate::{Error, Result, ShapeMismatch};

/// The element type of a weights file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// 32-bit floats: nothing is lost.
    #[default]
    F32,
    /// 16-bit IEEE floats: half the size; values beyond ±65504 are refused.
    F16,
    /// 16-bit floats with the range of 32-bit ones.
    BF16,
}

/// Writes the parameters of `module` to `path` under their own field paths.
///
/// # Errors
/// As [`save_module_as`].
pub fn save_module<M: Module>(
    module: &M,
    path: impl AsRef<Path>,
    precision: Precision,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    save_module_as(module, path, precision, metadata, &str::to_owned)
}

/// Writes the parameters of `module` to `path`, each under the name that `rename` gives to its field path.
///
/// # Errors
/// When a value is not finite or does not fit the precision (the tensor is named), two parameters get one name, or the
/// file cannot be written.
pub fn save_module_as<M: Module>(
    module: &M,
    path: impl AsRef<Path>,
    precision: Precision,
    metadata: &BTreeMap<String, String>,
    rename: &dyn Fn(&str) -> String,
) -> Result<()> {
    let path = path.as_ref();
    let mut collector = Collector { names: Names::default(), rename, precision, tensors: BTreeMap::new(), error: None };
    module.visit(&mut collector);
    if let Some(message) = collector.error {
        return Err(Error::format(path, message));
    }
    let mut views = Vec::with_capacity(collector.tensors.len());
    for (name, (dtype, shape, bytes)) in &collector.tensors {
        let view = TensorView::new(*dtype, shape.clone(), bytes)
            .map_err(|e| Error::format(path, format!("tensor {name}: {e}")))?;
        views.push((name.as_str(), view));
    }
    let mut header: HashMap<String, String> = metadata.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    header.insert("format".into(), "pt".into());
    let bytes = safetensors::serialize(views, Some(header)).map_err(|e| Error::format(path, e.to_string()))?;
    write_file(path, &bytes)
}

/// Loads the parameters of `module` from a file written by [`save_module`].
///
/// # Errors
/// As [`load_module_as`].
pub fn load_module<M: Module>(module: M, path: impl AsRef<Path>) -> Result<M> {
    load_module_as(module, path, &str::to_owned)
}

/// Loads the parameters of `module` from `path`, where each is found under the name that `rename` gives to its field
/// path. Values are converted to the floating-point type of the module's device.
///
/// # Errors
/// [`Error::Weights`] with every missing, unexpected and wrongly shaped tensor; [`Error::Format`] for a damaged file or
/// a tensor that does not hold floats or holds a value that is not finite.
pub fn load_module_as<M: Module>(module: M, path: impl AsRef<Path>, rename: &dyn Fn(&str) -> String) -> Result<M> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|e| Error::format(path, format!("not a complete safetensors file ({e})")))?;

    let mut checker = Checker { names: Names::default(), rename, expected: BTreeMap::new() };
    module.visit(&mut checker);
    let mut missing = Vec::new();
    let mut mismatched = Vec::new();
    for (name, expected) in &checker.expected {
        match file.tensor(name) {
            Err(_) => missing.push(name.clone()),
            Ok(view) if !same_shape(view.shape(), expected) => mismatched.push(ShapeMismatch {
                name: name.clone(),
                expected: expected.clone(),
                found: view.shape().to_vec(),
            }),
            Ok(_) => {}
        }
    }
    let mut unexpected: Vec<String> =
        file.names().iter().filter(|n| !checker.expected.contains_key(**n)).map(|n| n.to_string()).collect();
    unexpected.sort();
    if !(missing.is_empty() && unexpected.is_empty() && mismatched.is_empty()) {
        return Err(Error::Weights { path: path.to_path_buf(), missing, unexpected, mismatched });
    }

    let mut values = BTreeMap::new();
    for name in checker.expected.keys() {
        let view = file.tensor(name).map_err(|e| Error::format(path, format!("tensor {name}: {e}")))?;
        let data = floats(&view).map_err(|message| Error::format(path, format!("tensor {name}: {message}")))?;
        values.insert(name.clone(), data);
    }
    Ok(module.map(&mut Loader { names: Names::default(), rename, values }))
}

/// A zero-dimensional tensor and one of shape `[1]` are the same to us (`logit_scale`).
fn same_shape(found: &[usize], expected: &[usize]) -> bool {
    found == expected || (found.is_empty() && expected == [1])
}

fn floats(view: &TensorView<'_>) -> Result<Vec<f32>, String> {
    let bytes = view.data();
    let values: Vec<f32> = match view.dtype() {
        Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Dtype::F16 => bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Dtype::BF16 => bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Dtype::F64 => bytes
            .chunks_exact(8)
            .map(|b| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32)
            .collect(),
        other => return Err(format!("has element type {other:?}; a weight is F64, F32, F16 or BF16")),
    };
    match values.iter().position(|v| !v.is_finite()) {
        Some(i) => Err(format!("element {i} is {}; weights must be finite", values[i])),
        None => Ok(values),
    }
}

/// Transposes a matrix whose rows have `width` values. Done here and not by a strided tensor, so that a loaded module
/// computes bit for bit what the saved one did.
fn transpose(values: &[f32], width: usize) -> Vec<f32> {
    (0..width).flat_map(|column| values.iter().skip(column).step_by(width).copied()).collect()
}

/// Follows a module traversal and knows the path and the layout of the current parameter.
#[derive(Default)]
struct Names {
    path: Vec<String>,
    containers: Vec<String>,
}

/// How the innermost module's parameter differs on disk.
enum Layout {
    Same,
    Transposed,
}

impl Names {
    fn enter(&mut self, name: &str, container: &str) {
        self.path.push(name.to_owned());
        self.containers.push(container.to_owned());
    }

    fn exit(&mut self) {
        self.path.pop();
        self.containers.pop();
    }

    /// The field path with PyTorch's parameter names, and the layout of the tensor.
    fn current(&self) -> (String, Layout) {
        let module = self.containers.iter().rev().find_map(|c| c.strip_prefix("Struct:")).unwrap_or_default();
        let mut path = self.path.clone();
        let mut layout = Layout::Same;
        if let Some(last) = path.last_mut() {
            match (module, last.as_str()) {
                ("Linear", "weight") => layout = Layout::Transposed,
                ("LayerNorm" | "GroupNorm", "gamma") => *last = "weight".into(),
                ("LayerNorm" | "GroupNorm", "beta") => *last = "bias".into(),
                _ => {}
            }
        }
        (path.join("."), layout)
    }
}

struct Collector<'a> {
    names: Names,
    rename: &'a dyn Fn(&str) -> String,
    precision: Precision,
    tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
    error: Option<String>,
}

impl Collector<'_> {
    fn encode(&self, values: &[f32]) -> Result<(Dtype, Vec<u8>), String> {
        let fits = |v: &f32| match self.precision {
            Precision::F16 => half::f16::from_f32(*v).is_finite(),
            Precision::BF16 => half::bf16::from_f32(*v).is_finite(),
            Precision::F32 => v.is_finite(),
        };
        if let Some(i) = values.iter().position(|v| !fits(v)) {
            return Err(format!("element {i} is {}, which {:?} cannot hold", values[i], self.precision));
        }
        Ok(match self.precision {
            Precision::F32 => (Dtype::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect()),
            Precision::F16 => (Dtype::F16, values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect()),
            Precision::BF16 => {
                (Dtype::BF16, values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect())
            }
        })
    }

    fn collect<const D: usize>(&mut self, param: &Param<Tensor<D>>) -> Result<(), String> {
        let (path, layout) = self.names.current();
        let name = (self.rename)(&path);
        let tensor = param.val().without_autodiff().detach();
        let tensor = match layout {
            Layout::Transposed => tensor.swap_dims(D - 2, D - 1),
            Layout::Same => tensor,
        };
        let shape = tensor.dims().to_vec();
        let values =
            tensor.cast(DType::F32).into_data().try_to_vec::<f32>().map_err(|e| format!("tensor {name}: {e}"))?;
        let (dtype, bytes) = self.encode(&values).map_err(|e| format!("tensor {name}: {e}"))?;
        match self.tensors.insert(name.clone(), (dtype, shape, bytes)) {
            Some(_) => Err(format!("two parameters would be written as {name}")),
            None => Ok(()),
        }
    }
}

impl ModuleVisitor for Collector<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.names.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.names.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.error.is_none() {
            self.error = self.collect(param).err();
        }
    }
}

struct Checker<'a> {
    names: Names,
    rename: &'a dyn Fn(&str) -> String,
    expected: BTreeMap<String, Vec<usize>>,
}

impl ModuleVisitor for Checker<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.names.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.names.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let (path, layout) = self.names.current();
        let mut shape: Vec<usize> = param.lazy_shape().to_vec();
        if let Layout::Transposed = layout {
            shape.swap(D - 2, D - 1);
        }
        self.expected.insert((self.rename)(&path), shape);
    }
}

struct Loader<'a> {
    names: Names,
    rename: &'a dyn Fn(&str) -> String,
    values: BTreeMap<String, Vec<f32>>,
}

impl ModuleMapper for Loader<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.names.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.names.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (path, layout) = self.names.current();
        let Some(values) = self.values.remove(&(self.rename)(&path)) else {
            return param;
        };
        let shape: Vec<usize> = param.lazy_shape().to_vec();
        let values = match layout {
            Layout::Same => values,
            Layout::Transposed => transpose(&values, shape[D - 2]),
        };
        let tensor = Tensor::from_data(TensorData::new(values, shape), &param.lazy_device());
        let id = param.id;
        param.transform_for_load(tensor, id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
    use burn::prelude::*;

    #[derive(Module, Debug)]
    struct Toy {
        proj: Linear,
        norms: Vec<LayerNorm>,
        scale: Param<Tensor<1>>,
    }

    fn toy(d_out: usize, device: &Device) -> Toy {
        Toy {
            proj: LinearConfig::new(3, d_out).init(device),
            norms: vec![LayerNormConfig::new(d_out).init(device); 2],
            scale: Param::from_tensor(Tensor::from_floats([2.5], device)),
        }
    }

    fn weights(toy: &Toy) -> Vec<f32> {
        toy.proj.weight.val().into_data().try_to_vec().unwrap()
    }

    #[test]
    fn saved_and_loaded_is_equal_and_named_as_in_pytorch() {
        let device = Device::flex();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/model.safetensors");
        let saved = toy(5, &device);
        save_module(&saved, &path, Precision::F32, &BTreeMap::new()).unwrap();
        let loaded = load_module(toy(5, &device), &path).unwrap();
        assert_eq!(weights(&saved), weights(&loaded));
        let x = Tensor::<2>::random([7, 3], burn::tensor::Distribution::Default, &device);
        loaded.proj.forward(x.clone()).into_data().assert_eq(&saved.proj.forward(x).into_data(), true);

        let bytes = std::fs::read(&path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.tensor("proj.weight").unwrap().shape(), [5, 3]);
        assert!(file.tensor("norms.1.bias").is_ok());
        assert_eq!(file.names().len(), 7);
    }

    #[test]
    fn every_deviation_is_listed() {
        let device = Device::flex();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let rename = |name: &str| name.replace("norms.1", "extra");
        save_module_as(&toy(5, &device), &path, Precision::F16, &BTreeMap::new(), &rename).unwrap();
        let Err(Error::Weights { missing, unexpected, mismatched, .. }) = load_module(toy(4, &device), &path) else {
            panic!("must be refused");
        };
        assert_eq!(missing, ["norms.1.bias", "norms.1.weight"]);
        assert_eq!(unexpected, ["extra.bias", "extra.weight"]);
        let names: Vec<_> = mismatched.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["norms.0.bias", "norms.0.weight", "proj.bias", "proj.weight"]);
    }

    #[test]
    fn truncated_and_foreign_files_are_refused() {
        let device = Device::flex();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        save_module(&toy(5, &device), &path, Precision::F32, &BTreeMap::new()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for cut in [0, 4, 8, 100, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let error = load_module(toy(5, &device), &path).unwrap_err().to_string();
            assert!(error.contains("model.safetensors"), "{error}");
        }
        let mut absurd = u64::MAX.to_le_bytes().to_vec();
        absurd.extend_from_slice(b"{}");
        std::fs::write(&path, absurd).unwrap();
        assert!(load_module(toy(5, &device), &path).is_err());
    }

    #[test]
    fn values_that_do_not_fit_are_refused() {
        let device = Device::flex();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let mut module = toy(5, &device);
        module.scale = Param::from_tensor(Tensor::from_floats([1e6], &device));
        let error = save_module(&module, &path, Precision::F16, &BTreeMap::new()).unwrap_err().to_string();
        assert!(error.contains("scale"), "{error}");
        assert!(!path.exists());
        save_module(&module, &path, Precision::BF16, &BTreeMap::new()).unwrap();
    }
}
