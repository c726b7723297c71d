//! A list of tensors under construction.

use super::Tensors;

/// Names and shapes, added layer by layer.
#[derive(Default)]
pub struct List(pub Tensors);

impl List {
    pub fn add(&mut self, name: &str, shape: &[usize]) {
        self.0.insert(name.to_owned(), shape.to_vec());
    }

    pub fn linear(&mut self, name: &str, d_in: usize, d_out: usize) {
        self.add(&format!("{name}.weight"), &[d_out, d_in]);
        self.add(&format!("{name}.bias"), &[d_out]);
    }

    pub fn norm(&mut self, name: &str, width: usize) {
        self.add(&format!("{name}.weight"), &[width]);
        self.add(&format!("{name}.bias"), &[width]);
    }

    pub fn conv(&mut self, name: &str, from: usize, to: usize, kernel: usize) {
        self.add(&format!("{name}.weight"), &[to, from, kernel, kernel]);
        self.add(&format!("{name}.bias"), &[to]);
    }
}
