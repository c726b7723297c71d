//! Where weights come from: one file or several, as a table of tensors that are read one at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use safetensors::Dtype;
use serde::Deserialize;

use super::{read_json, safetensors_header};
use crate::{Error, Result};

/// Bytes that are read and converted at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// The tensors of a checkpoint, read from the disk when they are asked for.
///
/// Opening reads the headers alone. The table can then be edited, so that a file of another layout serves our models:
/// names can be changed, tensors split along their first axis, transposed or left out; no values move until a
/// tensor is read. [`load_module_from`](super::load_module_from) applies a table to a module, strictly.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    parts: Vec<Part>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Part {
    path: PathBuf,
    file: Mutex<File>,
}

/// A tensor in a file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    /// Number of the file in [`Weights::parts`].
    pub(super) part: usize,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Distance of neighbours along each axis, in elements.
    pub(super) strides: Vec<usize>,
    /// Position of the first element in the file, in bytes.
    pub(super) offset: u64,
}

impl Entry {
    /// A tensor whose values stand one after another.
    pub(super) fn contiguous(part: usize, dtype: Dtype, shape: Vec<usize>, offset: u64) -> Self {
        let strides = contiguous_strides(&shape);
        Self { part, dtype, shape, strides, offset }
    }

    fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    fn is_contiguous(&self) -> bool {
        let expected = contiguous_strides(&self.shape);
        self.numel() == 0
            || self.shape.iter().zip(&self.strides).zip(&expected).all(|((n, found), e)| *n == 1 || found == e)
    }

    /// Number of elements from the first to the last one, if it can be counted.
    pub(super) fn span(&self) -> Option<usize> {
        if self.shape.contains(&0) {
            return Some(0);
        }
        self.shape
            .iter()
            .zip(&self.strides)
            .try_fold(1usize, |span, (n, stride)| span.checked_add((n - 1).checked_mul(*stride)?))
    }
}

fn contiguous_strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].saturating_mul(shape[axis]);
    }
    strides
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// Opens a file by its ending: `.safetensors`, a PyTorch state dict (`.bin`, `.pt`, `.pth`, `.ckpt`), or the index
    /// of a checkpoint in several files (`.json`).
    ///
    /// PyTorch files are pickles. They are read as data; nothing in them is executed.
    ///
    /// # Errors
    /// When a file is missing, damaged or of another kind; for several files, when one is missing, or a tensor is not
    /// in the file that the index names: all of these are listed.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.extension().is_some_and(|e| e == "json") {
            return Self::open_shards(path);
        }
        let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
        let size = file.metadata().map_err(|e| Error::io(path, e))?.len();
        let tensors = read_table(path, &mut file, size, 0)?;
        let part = Part { path: path.to_path_buf(), file: Mutex::new(file) };
        Ok(Self { path: path.to_path_buf(), parts: vec![part], tensors })
    }

    fn open_shards(path: &Path) -> Result<Self> {
        let index: ShardIndex = read_json(path)?;
        let shards: BTreeSet<&String> = index.weight_map.values().collect();
        let mut weights = Self { path: path.to_path_buf(), parts: Vec::new(), tensors: BTreeMap::new() };
        let mut faults = Vec::new();
        for shard in shards {
            if shard.contains(['/', '\\']) || shard == ".." || shard.ends_with(".json") {
                return Err(Error::format(path, format!("shard {shard:?} is not a weights file beside the index")));
            }
            let listed = |name: &String| index.weight_map.get(name) == Some(shard);
            let file = path.with_file_name(shard);
            if !file.is_file() {
                let names: Vec<&str> = index.weight_map.keys().filter(|n| listed(n)).map(String::as_str).collect();
                faults.push(format!("shard {shard} is missing, which should hold {}", names.join(", ")));
                continue;
            }
            let mut opened = Self::open(&file)?;
            let number = weights.parts.len();
            weights.parts.append(&mut opened.parts);
            for (name, mut entry) in opened.tensors {
                match index.weight_map.get(&name) {
                    Some(expected) if expected == shard => {
                        entry.part = number;
                        weights.tensors.insert(name, entry);
                    }
                    Some(expected) => faults.push(format!("{name} is in {shard}; the index says {expected}")),
                    None => faults.push(format!("{name} is in {shard} and not in the index")),
                }
            }
            let lacking = index.weight_map.keys().filter(|n| listed(n) && !weights.tensors.contains_key(*n));
            faults.extend(lacking.map(|name| format!("{name} is not in {shard}, where the index says it is")));
        }
        match faults.is_empty() {
            true => Ok(weights),
            false => Err(Error::format(path, format!("the index and its shards differ:\n  {}", faults.join("\n  ")))),
        }
    }

    /// The file that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of the tensors, ascending.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// The element type of a tensor on disk.
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        self.tensors.get(name).map(|entry| entry.dtype)
    }

    /// Leaves out every tensor whose name `ignored` accepts.
    pub fn ignore(&mut self, ignored: impl Fn(&str) -> bool) {
        self.tensors.retain(|name, _| !ignored(name));
    }

    /// Gives every tensor the name that `rename` makes of its name.
    ///
    /// # Errors
    /// When two tensors would get one name.
    pub fn rename(&mut self, rename: impl Fn(&str) -> String) -> Result<()> {
        let mut renamed = BTreeMap::new();
        for (old, entry) in std::mem::take(&mut self.tensors) {
            let name = rename(&old);
            if renamed.insert(name.clone(), entry).is_some() {
                return Err(Error::format(&self.path, format!("{old} and another tensor would both become {name}")));
            }
        }
        self.tensors = renamed;
        Ok(())
    }

    /// Swaps the last two axes of a tensor.
    ///
    /// # Errors
    /// When there is no tensor of that name or it has fewer than two axes.
    pub fn transpose(&mut self, name: &str) -> Result<()> {
        match self.tensors.get_mut(name) {
            Some(Entry { shape, strides, .. }) if shape.len() >= 2 => {
                let last = shape.len() - 1;
                shape.swap(last - 1, last);
                strides.swap(last - 1, last);
                Ok(())
            }
            _ => Err(Error::format(&self.path, format!("{name} is not a matrix in this file"))),
        }
    }

    /// Replaces a tensor by equal pieces along its first axis, one for each of `names`.
    ///
    /// # Errors
    /// When there is no tensor of that name, its first axis does not divide, or a piece has the name of another tensor.
    pub fn split(&mut self, name: &str, names: &[String]) -> Result<()> {
        let unfit = |message: String| Error::format(&self.path, message);
        let Some(entry) = self.tensors.get(name) else {
            return Err(unfit(format!("{name} is not in this file")));
        };
        let (Some(rows), Some(stride)) = (entry.shape.first(), entry.strides.first()) else {
            return Err(unfit(format!("{name} is a single value and cannot be split in {}", names.len())));
        };
        if names.is_empty() || rows % names.len() != 0 {
            return Err(unfit(format!(
                "{name} has shape {:?}: its rows do not divide by {}",
                entry.shape,
                names.len()
            )));
        }
        let rows = rows / names.len();
        let bytes = rows as u64 * *stride as u64 * entry.dtype.bitsize() as u64 / 8;
        let mut pieces = Vec::with_capacity(names.len());
        for (i, piece) in names.iter().enumerate() {
            if self.tensors.contains_key(piece) {
                return Err(unfit(format!("{name} splits into {piece}, which is in the file already")));
            }
            let mut entry = entry.clone();
            entry.shape[0] = rows;
            entry.offset += i as u64 * bytes;
            pieces.push((piece.clone(), entry));
        }
        self.tensors.remove(name);
        self.tensors.extend(pieces);
        Ok(())
    }

    /// Reads a tensor as 32-bit floats in row-major order.
    ///
    /// # Errors
    /// When there is no tensor of that name, it does not hold floats or holds a value that is not finite, or the file
    /// cannot be read.
    pub fn read(&self, name: &str) -> Result<Vec<f32>> {
        self.read_floats(name).map_err(|message| Error::format(&self.path, format!("tensor {name}: {message}")))
    }

    /// Like [`read`](Self::read), with a message that names neither the file nor the tensor.
    pub(super) fn read_floats(&self, name: &str) -> Result<Vec<f32>, String> {
        let entry = self.tensors.get(name).ok_or("is not in the file")?;
        float_bytes(entry.dtype)?;
        if entry.is_contiguous() {
            return self.read_run(entry, entry.numel());
        }
        let span = entry.span().ok_or("has a size that cannot be counted")?;
        let run = self.read_run(entry, span)?;
        Ok(gather(&run, &entry.shape, &entry.strides))
    }

    /// Whether the elements of a tensor can be read as floats.
    pub(super) fn check_floats(&self, name: &str) -> Result<(), String> {
        self.tensors.get(name).map_or(Ok(()), |entry| float_bytes(entry.dtype).map(|_| ()))
    }

    /// The `n` values that follow the tensor's first one in its file.
    fn read_run(&self, entry: &Entry, n: usize) -> Result<Vec<f32>, String> {
        let width = float_bytes(entry.dtype)?;
        let part = self.parts.get(entry.part).ok_or("is in a file that is not open")?;
        let mut file = part.file.lock().unwrap_or_else(PoisonError::into_inner);
        let unreadable = |e: std::io::Error| format!("cannot be read from {}: {e}", part.path.display());
        file.seek(SeekFrom::Start(entry.offset)).map_err(unreadable)?;
        let mut values = Vec::with_capacity(n);
        let mut buffer = vec![0; CHUNK_BYTES.min(n.saturating_mul(width))];
        while values.len() < n {
            let bytes = &mut buffer[..CHUNK_BYTES.min((n - values.len()) * width)];
            file.read_exact(bytes).map_err(unreadable)?;
            convert(entry.dtype, bytes, &mut values);
        }
        match values.iter().position(|v| !v.is_finite()) {
            Some(i) => Err(format!("element {i} is {}; weights must be finite", values[i])),
            None => Ok(values),
        }
    }
}

/// The tensors of one file.
fn read_table(path: &Path, file: &mut File, size: u64, part: usize) -> Result<BTreeMap<String, Entry>> {
    let is = |extensions: &[&str]| path.extension().is_some_and(|e| extensions.iter().any(|known| e == *known));
    let table = if is(&["safetensors"]) {
        safetensors_header::read(file, size, part)
    } else if is(&["bin", "pt", "pth", "ckpt"]) {
        read_pytorch(file, size, part)
    } else {
        Err("is not a weights file: its name should end in .safetensors, .bin, .pt, .pth or .index.json".into())
    };
    table.map_err(|message| Error::format(path, message))
}

#[cfg(feature = "pytorch")]
fn read_pytorch(file: &mut File, size: u64, part: usize) -> Result<BTreeMap<String, Entry>, String> {
    super::pytorch::read(file, size, part)
}

#[cfg(not(feature = "pytorch"))]
fn read_pytorch(_: &mut File, _: u64, _: usize) -> Result<BTreeMap<String, Entry>, String> {
    Err("this build cannot read PyTorch files: enable the feature `pytorch`".into())
}

/// Bytes of an element that can be read as a float.
fn float_bytes(dtype: Dtype) -> Result<usize, String> {
    match dtype {
        Dtype::F64 => Ok(8),
        Dtype::F32 => Ok(4),
        Dtype::F16 | Dtype::BF16 => Ok(2),
        other => Err(format!("has element type {other:?}; a weight is F64, F32, F16 or BF16")),
    }
}

/// Appends little-endian elements; `bytes` holds whole ones.
fn convert(dtype: Dtype, bytes: &[u8], values: &mut Vec<f32>) {
    match dtype {
        Dtype::F64 => values.extend(bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32)),
        Dtype::F16 => values.extend(bytes.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32())),
        Dtype::BF16 => values.extend(bytes.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32())),
        _ => values.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
    }
}

/// The elements of a strided tensor in row-major order; `run` holds its whole span.
fn gather(run: &[f32], shape: &[usize], strides: &[usize]) -> Vec<f32> {
    if let ([rows, columns], [1, stride]) = (shape, strides)
        && stride == rows
    {
        return super::transpose::transpose(run, *columns, *rows);
    }
    let mut values = Vec::with_capacity(shape.iter().product());
    let mut index = vec![0; shape.len()];
    'elements: loop {
        values.push(run[index.iter().zip(strides).map(|(i, stride)| i * stride).sum::<usize>()]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                continue 'elements;
            }
            index[axis] = 0;
        }
        return values;
    }
}

#[cfg(test)]
mod tests;
