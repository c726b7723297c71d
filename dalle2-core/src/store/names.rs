//! What a module's parameters are called on disk, and how they lie there.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;

/// Follows a module traversal and knows the path and the layout of the current parameter.
#[derive(Default)]
pub(super) struct Names {
    path: Vec<String>,
    containers: Vec<String>,
}

/// How the innermost module's parameter differs on disk.
pub(super) enum Layout {
    Same,
    Transposed,
}

impl Names {
    pub(super) fn enter(&mut self, name: &str, container: &str) {
        self.path.push(name.to_owned());
        self.containers.push(container.to_owned());
    }

    pub(super) fn exit(&mut self) {
        self.path.pop();
        self.containers.pop();
    }

    /// The field path with PyTorch's parameter names, and the layout of the tensor.
    pub(super) fn current(&self) -> (String, Layout) {
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

/// The names and shapes that the parameters of `module` have on disk, without computing any.
///
/// `rename` gives the name on disk for a field path; parameters to which it gives one name appear once.
pub fn module_tensors<M: Module>(module: &M, rename: &dyn Fn(&str) -> String) -> BTreeMap<String, Vec<usize>> {
    let mut lister = Lister { names: Names::default(), rename, tensors: BTreeMap::new() };
    module.visit(&mut lister);
    lister.tensors
}

struct Lister<'a> {
    names: Names,
    rename: &'a dyn Fn(&str) -> String,
    tensors: BTreeMap<String, Vec<usize>>,
}

impl ModuleVisitor for Lister<'_> {
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
        self.tensors.insert((self.rename)(&path), shape);
    }
}
