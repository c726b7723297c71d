//! Writing safetensors files, one tensor at a time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Tensor};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::json::UnfinishedFile;
use super::names::{Layout, Names, module_tensors};
use crate::{Error, FloatType, Result};

/// Elements that are converted and written at a time.
const CHUNK: usize = 1 << 18;

/// The name of the type in the header of a file.
fn dtype(float_type: FloatType) -> Dtype {
    match float_type {
        FloatType::F32 => Dtype::F32,
        FloatType::F16 => Dtype::F16,
        FloatType::Bf16 => Dtype::BF16,
    }
}

fn encode(float_type: FloatType, data: &[f32], bytes: &mut Vec<u8>) {
    match float_type {
        FloatType::F32 => bytes.extend(data.iter().flat_map(|v| v.to_le_bytes())),
        FloatType::F16 => bytes.extend(data.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes())),
        FloatType::Bf16 => bytes.extend(data.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes())),
    }
}

/// Whether the value stays finite in the type.
fn is_representable(float_type: FloatType, value: f32) -> bool {
    match float_type {
        FloatType::F32 => value.is_finite(),
        FloatType::F16 => half::f16::from_f32(value).is_finite(),
        FloatType::Bf16 => half::bf16::from_f32(value).is_finite(),
    }
}

/// Writes the parameters of `module` to `path` under their own field paths.
///
/// # Errors
/// As [`save_module_as`].
pub fn save_module<M: Module>(
    module: &M,
    path: impl AsRef<Path>,
    float_type: FloatType,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    save_module_as(module, path, float_type, metadata, &str::to_owned)
}

/// Writes the parameters of `module` to `path`, each under the name that `rename` gives to its field path.
///
/// One tensor at a time is converted and written. A file in the same float type from which the module was loaded has
/// the same tensors byte for byte.
///
/// # Errors
/// When a value is not finite or is not finite in `float_type` (the tensor is named), two parameters get one name, or the
/// file cannot be written.
pub fn save_module_as<M: Module>(
    module: &M,
    path: impl AsRef<Path>,
    float_type: FloatType,
    metadata: &BTreeMap<String, String>,
    rename: &dyn Fn(&str) -> String,
) -> Result<()> {
    let writer = WeightsWriter::create(path, float_type, module_tensors(module, rename), metadata)?;
    let mut visitor = Saver { names: Names::default(), rename, writer, error: None };
    module.visit(&mut visitor);
    match visitor.error {
        Some(error) => Err(error),
        None => visitor.writer.finish(),
    }
}

/// A safetensors file in the making, of which the names and shapes are known and the values come one tensor at a time.
///
/// The file gets its name when it is finished; dropped before, it disappears.
#[derive(Debug)]
pub struct WeightsWriter {
    file: UnfinishedFile,
    float_type: FloatType,
    /// Position and number of elements of the tensors that are still to be written.
    pending: BTreeMap<String, (u64, usize)>,
    written: BTreeSet<String>,
}

impl WeightsWriter {
    /// Starts a file of `tensors`, names and shapes. The metadata gets `"format": "pt"`, which other readers ask for.
    ///
    /// # Errors
    /// When a shape has more elements than can be counted, or the file cannot be written.
    pub fn create(
        path: impl AsRef<Path>,
        float_type: FloatType,
        tensors: BTreeMap<String, Vec<usize>>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let path = path.as_ref();
        let mut infos = Vec::with_capacity(tensors.len());
        let mut pending = BTreeMap::new();
        let mut end = 0usize;
        for (name, shape) in tensors {
            let numel = shape.iter().try_fold(1usize, |numel, n| numel.checked_mul(*n));
            let place = numel.and_then(|n| Some((n, end.checked_add(n.checked_mul(float_type.bytes())?)?)));
            let (numel, next) = place
                .ok_or_else(|| Error::format(path, format!("tensor {name}: shape {shape:?} cannot be counted")))?;
            pending.insert(name.clone(), (end as u64, numel));
            infos.push((name, TensorInfo { dtype: dtype(float_type), shape, data_offsets: (end, next) }));
            end = next;
        }
        let mut all: HashMap<String, String> = metadata.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        all.insert("format".into(), "pt".into());
        let header = Metadata::new(Some(all), infos).map_err(|e| Error::format(path, e.to_string()))?;
        let mut header = serde_json::to_vec(&header).map_err(|e| Error::json(path, e))?;
        header.resize(header.len().next_multiple_of(8), b' ');
        let start = 8 + header.len() as u64;
        for (offset, _) in pending.values_mut() {
            *offset += start;
        }
        let mut file = UnfinishedFile::create(path)?;
        let length = (header.len() as u64).to_le_bytes();
        let written = file.file().write_all(&length).and_then(|()| file.file().write_all(&header));
        written.map_err(|e| Error::io(path, e))?;
        Ok(Self { file, float_type, pending, written: BTreeSet::new() })
    }

    /// Writes the values of one tensor, in row-major order.
    ///
    /// # Errors
    /// When a value is not finite or is not finite in `float_type`, the file has no such tensor or has it already, the
    /// number of values is not that of its shape, or the file cannot be written.
    pub fn write(&mut self, name: &str, values: &[f32]) -> Result<()> {
        let path = self.file.path().to_path_buf();
        let unfit = |message: String| Err(Error::format(&path, message));
        if let Some(i) = values.iter().position(|v| !is_representable(self.float_type, *v)) {
            let float_type = self.float_type;
            return unfit(format!("tensor {name}: element {i} is {}, which {float_type} cannot represent", values[i]));
        }
        let Some((offset, numel)) = self.pending.remove(name) else {
            return match self.written.contains(name) {
                true => unfit(format!("two parameters would be written as {name}")),
                false => unfit(format!("tensor {name} was not announced")),
            };
        };
        if values.len() != numel {
            return unfit(format!("tensor {name} has {} values; its shape has {numel}", values.len()));
        }
        let file = self.file.file();
        file.seek(SeekFrom::Start(offset)).map_err(|e| Error::io(&path, e))?;
        let mut bytes = Vec::with_capacity(CHUNK.min(values.len()) * self.float_type.bytes());
        for values in values.chunks(CHUNK) {
            bytes.clear();
            encode(self.float_type, values, &mut bytes);
            file.write_all(&bytes).map_err(|e| Error::io(&path, e))?;
        }
        self.written.insert(name.to_owned());
        Ok(())
    }

    /// Flushes the file and gives it its name.
    ///
    /// # Errors
    /// When tensors are still to be written, all of which are listed, or the disk refuses.
    pub fn finish(self) -> Result<()> {
        if !self.pending.is_empty() {
            let names: Vec<String> = self.pending.into_keys().collect();
            return Err(Error::format(self.file.path(), format!("not written: {}", names.join(", "))));
        }
        self.file.finish()
    }
}

struct Saver<'a> {
    names: Names,
    rename: &'a dyn Fn(&str) -> String,
    writer: WeightsWriter,
    error: Option<Error>,
}

impl Saver<'_> {
    fn save<const D: usize>(&mut self, param: &Param<Tensor<D>>) -> Result<()> {
        let (path, layout) = self.names.current();
        let name = (self.rename)(&path);
        let tensor = param.val().without_autodiff().detach();
        let tensor = match layout {
            Layout::Transposed => tensor.swap_dims(D - 2, D - 1),
            Layout::Same => tensor,
        };
        let values = tensor.cast(DType::F32).try_into_vec_as::<f32>();
        let values = values.map_err(|e| Error::Device(format!("tensor {name}: {e}")))?;
        self.writer.write(&name, &values)
    }
}

impl ModuleVisitor for Saver<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.names.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.names.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.error.is_none() {
            self.error = self.save(param).err();
        }
    }
}
