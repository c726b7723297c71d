//! A reader of pickles that builds plain values and never runs anything.
//!
//! Python's pickles are programs: they can call any function that Python can import. This reader knows the instructions
//! that a state dict or a TorchScript archive needs. A call of one of PyTorch's functions that put tensors together
//! makes the description of a tensor; a call of anything else makes an opaque value, and nothing is called. Values live
//! in one list and refer to each other by number, so that no pickle can make more of them than it has bytes.

mod machine;

use std::collections::HashMap;

use safetensors::Dtype;

use self::machine::Machine;

/// The number of a value.
pub(super) type Id = u32;

/// Largest pickle that is read, in bytes: a state dict takes about 200 for each tensor, and what a hostile one can make
/// this reader allocate is some forty times its size.
pub(super) const MAX_PICKLE_BYTES: u64 = 16 << 20;

/// Bytes of a tensor's elements as the pickle names them.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Storage {
    pub(super) key: String,
    pub(super) dtype: Dtype,
    pub(super) numel: usize,
}

/// A tensor: a window into a storage, counted in elements.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TensorRef {
    pub(super) storage: Storage,
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

#[derive(Debug, PartialEq)]
pub(super) enum Value {
    Mark,
    /// None, floats, byte strings, sets: nothing that names or describes a tensor.
    Other,
    Bool(bool),
    Int(i64),
    Text(String),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// Something to be imported: the texts of its module and its name.
    Class(Id, Id),
    /// What an unknown class would have made, with the state it was given.
    Object {
        class: Id,
        state: Option<Id>,
    },
    /// The storage of a persistent id, a tuple.
    Storage(Id),
    /// Storage, offset, shape and strides of a tensor.
    Tensor([Id; 4]),
}

/// What a pickle holds.
#[derive(Debug)]
pub(super) struct Pickle {
    values: Vec<Value>,
    pub(super) root: Id,
    /// Number of bytes up to and including the final instruction.
    pub(super) length: usize,
}

impl Pickle {
    /// Reads one pickle from the start of `bytes`.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() as u64 > MAX_PICKLE_BYTES {
            return Err(format!("pickle: {} bytes; a state dict has at most {MAX_PICKLE_BYTES}", bytes.len()));
        }
        Machine::new(bytes).run()
    }

    pub(super) fn value(&self, id: Id) -> &Value {
        value(&self.values, id)
    }

    /// Module and name of the class of an object.
    pub(super) fn class(&self, id: Id) -> Option<String> {
        match self.value(id) {
            Value::Object { class, .. } => {
                class_name(&self.values, *class).map(|(module, name)| format!("{module}.{name}"))
            }
            _ => None,
        }
    }

    /// The tensor that a value describes; `None` for other values and for element types that have no name in
    /// safetensors.
    pub(super) fn tensor(&self, id: Id) -> Option<TensorRef> {
        let Value::Tensor([storage, offset, shape, strides]) = self.value(id) else {
            return None;
        };
        let Value::Storage(storage) = self.value(*storage) else {
            return None;
        };
        Some(TensorRef {
            storage: self.storage(*storage)?,
            offset: self.size(*offset)?,
            shape: self.sizes(*shape)?,
            strides: self.sizes(*strides)?,
        })
    }

    /// The storage that a persistent id `("storage", class, key, location, numel, …)` means.
    fn storage(&self, id: Id) -> Option<Storage> {
        let Value::Tuple(items) = self.value(id) else {
            return None;
        };
        let [kind, class, key, _, numel, ..] = items.as_slice() else {
            return None;
        };
        match (self.value(*kind), class_name(&self.values, *class), self.value(*key)) {
            (Value::Text(kind), Some(("torch", class)), Value::Text(key)) if kind == "storage" && key.len() <= 64 => {
                Some(Storage { key: key.clone(), dtype: storage_dtype(class)?, numel: self.size(*numel)? })
            }
            _ => None,
        }
    }

    /// Every storage that the pickle names, by its key.
    pub(super) fn storages(&self) -> HashMap<String, Storage> {
        let storage = |value: &Value| match value {
            Value::Storage(id) => self.storage(*id).map(|storage| (storage.key.clone(), storage)),
            _ => None,
        };
        self.values.iter().filter_map(storage).collect()
    }

    fn size(&self, id: Id) -> Option<usize> {
        match self.value(id) {
            Value::Int(size) => usize::try_from(*size).ok(),
            _ => None,
        }
    }

    fn sizes(&self, id: Id) -> Option<Vec<usize>> {
        match self.value(id) {
            // No weight has more than 8 axes.
            Value::Tuple(items) if items.len() <= 8 => items.iter().map(|id| self.size(*id)).collect(),
            _ => None,
        }
    }

    /// The value of a text key of a dictionary or of an object's state.
    pub(super) fn get(&self, id: Id, key: &str) -> Option<Id> {
        self.entries(id).find_map(|(name, value)| (name == key).then_some(value))
    }

    /// The entries of a dictionary, or of an object's state, whose keys are text.
    pub(super) fn entries(&self, id: Id) -> impl Iterator<Item = (&str, Id)> {
        let dict = match self.value(id) {
            Value::Object { state: Some(state), .. } => self.value(*state),
            other => other,
        };
        let pairs: &[(Id, Id)] = if let Value::Dict(pairs) = dict { pairs } else { &[] };
        pairs.iter().filter_map(|(key, value)| match self.value(*key) {
            Value::Text(key) => Some((key.as_str(), *value)),
            _ => None,
        })
    }
}

fn value(values: &[Value], id: Id) -> &Value {
    values.get(id as usize).unwrap_or(&Value::Other)
}

/// Module and name of a class.
fn class_name(values: &[Value], id: Id) -> Option<(&str, &str)> {
    let Value::Class(module, name) = value(values, id) else {
        return None;
    };
    match (value(values, *module), value(values, *name)) {
        (Value::Text(module), Value::Text(name)) => Some((module, name)),
        _ => None,
    }
}

fn storage_dtype(class: &str) -> Option<Dtype> {
    Some(match class {
        "DoubleStorage" => Dtype::F64,
        "FloatStorage" => Dtype::F32,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" => Dtype::U8,
        "BoolStorage" => Dtype::BOOL,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
