//! Strict loading of modules, one tensor at a time.

use std::path::Path;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Tensor, TensorData};

use super::Weights;
use super::names::{Layout, Names, module_tensors};
use super::transpose::transpose;
use crate::{Error, Result, ShapeMismatch, UnreadableTensor};

/// Loads the parameters of `module` from a file written by [`save_module`](super::save_module).
///
/// # Errors
/// As [`load_module_as`].
pub fn load_module<M: Module>(module: M, path: impl AsRef<Path>) -> Result<M> {
    load_module_as(module, path, &str::to_owned)
}

/// Loads the parameters of `module` from `path`, where each is found under the name that `rename` gives to its field
/// path. Values are converted to the floating-point type of the module's device.
///
/// The file may be of any kind that [`Weights::open`] reads.
///
/// # Errors
/// [`Error::Weights`] as [`load_module_from`]; [`Error::Format`] for a damaged file.
pub fn load_module_as<M: Module>(module: M, path: impl AsRef<Path>, rename: &dyn Fn(&str) -> String) -> Result<M> {
    load_module_from(module, &Weights::open(path)?, rename)
}

/// Loads the parameters of `module` from a table of tensors, where each is found under the name that `rename` gives to
/// its field path. Values are converted to the floating-point type of the module's device.
///
/// Names, shapes and element types are compared before anything is read. Then one tensor at a time is read, converted
/// and put in its place, so that the memory in use is that of the module and of one tensor.
///
/// # Errors
/// [`Error::Weights`] with every missing, unexpected and wrongly shaped tensor and every one that does not hold floats;
/// with every tensor that holds a value that is not finite or that cannot be read.
pub fn load_module_from<M: Module>(module: M, weights: &Weights, rename: &dyn Fn(&str) -> String) -> Result<M> {
    load_converted(module, weights, rename, &mut Unchanged)
}

/// Leaves every parameter as it was read.
struct Unchanged;

impl ModuleMapper for Unchanged {}

/// [`load_module_from`], with each parameter as `convert` maps it before the next one is read.
pub(crate) fn load_converted<M: Module, C: ModuleMapper>(
    module: M,
    weights: &Weights,
    rename: &dyn Fn(&str) -> String,
    convert: &mut C,
) -> Result<M> {
    check_module_from(&module, weights, rename)?;
    let mut loader = Loader { names: Names::default(), rename, weights, convert, unreadable: Vec::new() };
    let module = module.map(&mut loader);
    match loader.unreadable.is_empty() {
        true => Ok(module),
        false => Err(Error::Weights {
            path: weights.path().to_path_buf(),
            missing: Vec::new(),
            unexpected: Vec::new(),
            mismatched: Vec::new(),
            unreadable: loader.unreadable,
        }),
    }
}

/// Compares the names, shapes and element types in a table with the parameters of `module`, which are not computed;
/// nothing is read.
///
/// # Errors
/// [`Error::Weights`] with every missing, unexpected and wrongly shaped tensor and every one that does not hold floats.
pub fn check_module_from<M: Module>(module: &M, weights: &Weights, rename: &dyn Fn(&str) -> String) -> Result<()> {
    let expected = module_tensors(module, rename);
    let mut missing = Vec::new();
    let mut mismatched = Vec::new();
    let mut unreadable = Vec::new();
    for (name, expected) in &expected {
        match weights.shape(name) {
            None => missing.push(name.clone()),
            Some(found) if !same_shape(found, expected) => {
                mismatched.push(ShapeMismatch { name: name.clone(), expected: expected.clone(), found: found.to_vec() })
            }
            Some(_) => {}
        }
        if let Err(message) = weights.check_floats(name) {
            unreadable.push(UnreadableTensor { name: name.clone(), message });
        }
    }
    let unexpected: Vec<String> =
        weights.names().filter(|name| !expected.contains_key(*name)).map(str::to_owned).collect();
    match missing.is_empty() && unexpected.is_empty() && mismatched.is_empty() && unreadable.is_empty() {
        true => Ok(()),
        false => {
            let path = weights.path().to_path_buf();
            Err(Error::Weights { path, missing, unexpected, mismatched, unreadable })
        }
    }
}

/// A zero-dimensional tensor and one of shape `[1]` are the same to us (`logit_scale`).
fn same_shape(found: &[usize], expected: &[usize]) -> bool {
    found == expected || (found.is_empty() && expected == [1])
}

struct Loader<'a, C> {
    names: Names,
    rename: &'a dyn Fn(&str) -> String,
    weights: &'a Weights,
    convert: &'a mut C,
    unreadable: Vec<UnreadableTensor>,
}

impl<C: ModuleMapper> ModuleMapper for Loader<'_, C> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.names.enter(name, container);
        self.convert.enter_module(name, container);
    }

    fn exit_module(&mut self, name: &str, container: &str) {
        self.names.exit();
        self.convert.exit_module(name, container);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (path, layout) = self.names.current();
        let name = (self.rename)(&path);
        let values = match self.weights.read_floats(&name) {
            Ok(values) => values,
            Err(message) => {
                self.unreadable.push(UnreadableTensor { name, message });
                return param;
            }
        };
        let shape: Vec<usize> = param.lazy_shape().to_vec();
        let values = match layout {
            Layout::Same => values,
            Layout::Transposed => transpose(&values, shape[D - 1], shape[D - 2]),
        };
        let tensor = Tensor::from_data(TensorData::new(values, shape), &param.lazy_device());
        let id = param.id;
        self.convert.map_float(param.transform_for_load(tensor, id))
    }
}
