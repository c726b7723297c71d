//! PyTorch's own files as tables of tensors: state dicts, wrapped ones, and TorchScript archives.
//!
//! Three containers are known. Since PyTorch 1.6 `torch.save` writes a ZIP archive with a pickle `data.pkl` and one
//! uncompressed entry per storage; a TorchScript archive looks the same and its pickle holds the module instead of a
//! dictionary; before, a file was a row of pickles with the storages behind them. The pickles are read by
//! [`pickle`], which executes nothing.

mod pickle;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use safetensors::Dtype;
use zip::{CompressionMethod, ZipArchive};

use self::pickle::{Id, MAX_PICKLE_BYTES, Pickle, Storage, TensorRef, Value};
use super::source::Entry;

/// Keys under which training programs keep the weights beside other things.
const WRAPPERS: [&str; 3] = ["state_dict", "model_state_dict", "model"];
/// Modules inside one another that a TorchScript archive may have.
const MAX_DEPTH: usize = 64;
/// What the first pickle of the format before PyTorch 1.6 holds: 0x1950a86a20f9469cfc6c as a LONG1.
const LEGACY_MAGIC: [u8; 14] = [0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// Where a storage's bytes stand in the file.
struct Extent {
    offset: u64,
    bytes: u64,
}

/// Reads the tensors of a file of `size` bytes, whose cursor stands at the start.
pub(super) fn read(file: &mut File, size: u64, part: usize) -> Result<BTreeMap<String, Entry>, String> {
    let mut start = [0; LEGACY_MAGIC.len()];
    let known = file.read(&mut start).map_err(|e| e.to_string())?;
    file.rewind().map_err(|e| e.to_string())?;
    match &start[..known] {
        [b'P', b'K', ..] => read_archive(file, size, part),
        magic if *magic == LEGACY_MAGIC => read_legacy(file, size, part),
        _ => Err("is not a PyTorch file: it is neither a ZIP archive nor a row of pickles".into()),
    }
}

fn read_archive(file: &mut File, size: u64, part: usize) -> Result<BTreeMap<String, Entry>, String> {
    let damaged = |e: zip::result::ZipError| format!("not a complete PyTorch archive ({e})");
    let mut archive = ZipArchive::new(file).map_err(damaged)?;
    let folder = archive.file_names().filter_map(Result::ok).find_map(|name| {
        let folder = name.strip_suffix("data.pkl")?;
        (folder.find('/') == Some(folder.len().checked_sub(1)?)).then(|| folder.to_owned())
    });
    let folder = folder.ok_or("is a ZIP archive without data.pkl, so not one of PyTorch's")?;

    let bytes = read_entry(&mut archive, &format!("{folder}data.pkl"), MAX_PICKLE_BYTES)?;
    if archive.index_for_name(&format!("{folder}byteorder")).is_some()
        && read_entry(&mut archive, &format!("{folder}byteorder"), 16)? != b"little"
    {
        return Err("was written on a big-endian machine: convert it to safetensors there".into());
    }
    let pickle = Pickle::read(&bytes)?;
    let mut extents = HashMap::new();
    let storage = |storage: &Storage| {
        let name = format!("{folder}data/{}", storage.key);
        let mut extent = || {
            let index = archive.index_for_name(&name)?;
            let entry = archive.by_index_raw(index).ok()?;
            let offset = entry.data_start()?;
            let inside = offset.checked_add(entry.size()).is_some_and(|end| end <= size);
            let plain = entry.compression() == CompressionMethod::Stored && !entry.encrypted();
            (inside && plain).then_some(Extent { offset, bytes: entry.size() })
        };
        let found = extents.entry(storage.key.clone()).or_insert_with(&mut extent);
        match found {
            Some(Extent { offset, bytes }) => Ok((*offset, *bytes)),
            None => Err(format!("the entry {name} of the archive is missing, compressed or cut off")),
        }
    };
    table(&pickle, part, storage)
}

/// The bytes of an entry that has at most `most`.
fn read_entry(archive: &mut ZipArchive<&mut File>, name: &str, most: u64) -> Result<Vec<u8>, String> {
    let unreadable = |e: String| format!("the entry {name} of the archive cannot be read: {e}");
    let entry = archive.by_name(name).map_err(|e| unreadable(e.to_string()))?;
    let mut bytes = Vec::new();
    entry.take(most + 1).read_to_end(&mut bytes).map_err(|e| unreadable(e.to_string()))?;
    match bytes.len() as u64 > most {
        true => Err(unreadable(format!("it has more than {most} bytes"))),
        false => Ok(bytes),
    }
}

/// Magic number, protocol, system, object and list of storages as pickles; then the storages, each behind its length.
fn read_legacy(file: &mut File, size: u64, part: usize) -> Result<BTreeMap<String, Entry>, String> {
    let mut bytes = Vec::new();
    file.take(MAX_PICKLE_BYTES).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    let mut at = 0;
    let mut next = || {
        let pickle = Pickle::read(&bytes[at..])?;
        at += pickle.length;
        Ok::<_, String>(pickle)
    };
    for _ in 0..3 {
        next()?;
    }
    let object = next()?;
    let keys = next()?;
    let Value::List(keys_in_order) = keys.value(keys.root) else {
        return Err("has no list of its storages".into());
    };
    let storages = object.storages();
    let mut extents = HashMap::new();
    let mut offset = at as u64;
    for key in keys_in_order {
        let Value::Text(key) = keys.value(*key) else {
            return Err("has a storage whose key is not text".into());
        };
        file.seek(SeekFrom::Start(offset)).map_err(|e| e.to_string())?;
        let mut numel = [0; 8];
        file.read_exact(&mut numel).map_err(|e| format!("storage {key} is cut off: {e}"))?;
        let Some(storage) = storages.get(key) else {
            return Err(format!("storage {key} has an element type that no weight has"));
        };
        let bytes = u64::from_le_bytes(numel).checked_mul(storage.dtype.bitsize() as u64 / 8);
        offset += 8;
        let end = bytes.and_then(|bytes| offset.checked_add(bytes)).filter(|end| *end <= size);
        let end = end.ok_or_else(|| format!("storage {key} is cut off"))?;
        extents.insert(key.clone(), (offset, end - offset));
        offset = end;
    }
    table(&object, part, |storage| {
        extents.get(&storage.key).copied().ok_or_else(|| format!("storage {} is missing", storage.key))
    })
}

/// The named tensors of a pickle as a table; `extent` gives the offset and the number of bytes of a storage.
fn table(
    pickle: &Pickle,
    part: usize,
    mut extent: impl FnMut(&Storage) -> Result<(u64, u64), String>,
) -> Result<BTreeMap<String, Entry>, String> {
    let mut tensors = BTreeMap::new();
    for (name, tensor) in named_tensors(pickle)? {
        let unfit = |message: String| format!("tensor {name}: {message}");
        let (offset, bytes) = extent(&tensor.storage).map_err(unfit)?;
        let entry = entry(&tensor, part, offset, bytes).ok_or_else(|| {
            unfit(format!(
                "shape {:?} with strides {:?} from element {} does not fit its storage of {bytes} bytes",
                tensor.shape, tensor.strides, tensor.offset
            ))
        })?;
        tensors.insert(name, entry);
    }
    Ok(tensors)
}

/// A tensor's place in the file, if it lies within its storage.
fn entry(tensor: &TensorRef, part: usize, offset: u64, bytes: u64) -> Option<Entry> {
    let width = element_bytes(tensor.storage.dtype);
    let available = (bytes / width).min(tensor.storage.numel as u64);
    let numel = tensor.shape.iter().try_fold(1usize, |numel, n| numel.checked_mul(*n))?;
    if tensor.shape.len() != tensor.strides.len() || numel as u64 > available {
        return None;
    }
    let shape = tensor.shape.clone();
    let mut entry = Entry::contiguous(part, tensor.storage.dtype, shape, 0);
    if numel > 0 {
        let strides = tensor.shape.iter().zip(&tensor.strides).map(|(n, stride)| if *n == 1 { 0 } else { *stride });
        entry.strides = strides.collect();
    }
    let end = (tensor.offset as u64).checked_add(entry.span()? as u64)?;
    entry.offset = offset.checked_add((tensor.offset as u64).checked_mul(width)?)?;
    (end <= available || numel == 0).then_some(entry)
}

fn element_bytes(dtype: Dtype) -> u64 {
    (dtype.bitsize() as u64 / 8).max(1)
}

/// The tensors of a state dict, of one that is wrapped in a dictionary, or of a TorchScript module.
fn named_tensors(pickle: &Pickle) -> Result<Vec<(String, TensorRef)>, String> {
    let mut collector = Collector { pickle, budget: MAX_PICKLE_BYTES as usize, tensors: Vec::new() };
    match pickle.value(pickle.root) {
        Value::Dict(_) => {
            let wrapped = WRAPPERS.iter().find_map(|key| pickle.get(pickle.root, key));
            let dict = wrapped.filter(|id| matches!(pickle.value(*id), Value::Dict(_))).unwrap_or(pickle.root);
            collector.collect(dict, "", 0)?;
        }
        Value::Object { .. } => {
            let class = pickle.class(pickle.root).unwrap_or_default();
            if !class.starts_with("__torch__") {
                return Err(format!(
                    "holds a pickled Python object of class {class}, which is not executed: save its state_dict() instead"
                ));
            }
            collector.collect(pickle.root, "", 0)?;
        }
        _ => return Err("holds no dictionary of tensors".into()),
    }
    match collector.tensors.is_empty() {
        true => Err("holds no tensors under names: a state dict is expected".into()),
        false => Ok(collector.tensors),
    }
}

struct Collector<'a> {
    pickle: &'a Pickle,
    /// Bytes that all paths together may still have: values can occur any number of times.
    budget: usize,
    tensors: Vec<(String, TensorRef)>,
}

impl Collector<'_> {
    /// The tensors of a dictionary or a TorchScript module and of the modules in it, under their dotted paths.
    fn collect(&mut self, module: Id, prefix: &str, depth: usize) -> Result<(), String> {
        if depth > MAX_DEPTH {
            return Err(format!("{prefix}: modules are nested more than {MAX_DEPTH} deep"));
        }
        let pickle = self.pickle;
        for (name, id) in pickle.entries(module) {
            let path = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
            let left = self.budget.checked_sub(path.len() + 1);
            self.budget = left.ok_or("has more modules than an archive of this size can have")?;
            match pickle.value(id) {
                Value::Tensor(_) => self.tensors.extend(pickle.tensor(id).map(|tensor| (path, tensor))),
                Value::Object { .. } => self.collect(id, &path, depth + 1)?,
                _ => {}
            }
        }
        Ok(())
    }
}
