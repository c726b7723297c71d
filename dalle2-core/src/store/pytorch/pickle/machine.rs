//! The stack machine that pickles are written for, as far as a state dict needs it.

use std::collections::HashMap;

use super::{Id, Pickle, Value, class_name, value};

/// A pickle that is being read.
pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    memo: HashMap<u64, Id>,
}

impl<'a> Machine<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, values: Vec::new(), stack: Vec::new(), memo: HashMap::new() }
    }

    /// Runs the pickle to its end.
    pub(super) fn run(mut self) -> Result<Pickle, String> {
        loop {
            let start = self.at;
            let op = self.byte()?;
            if op == b'.' {
                let root = self.pop()?;
                return Ok(Pickle { values: self.values, root, length: self.at });
            }
            self.step(op).map_err(|message| format!("pickle, byte {start}: {message}"))?;
        }
    }

    fn step(&mut self, op: u8) -> Result<(), String> {
        match op {
            0x80 => drop(self.byte()?),  // PROTO
            0x95 => drop(self.take(8)?), // FRAME
            b'(' => self.push(Value::Mark),
            b'0' => drop(self.pop()?),
            b'N' => self.push(Value::Other),
            0x88 | 0x89 => self.push(Value::Bool(op == 0x88)),
            b'K' => self.int(1)?,
            b'M' => self.int(2)?,
            b'J' => {
                let bytes = self.take(4)?;
                let value = i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                self.push(Value::Int(value.into()));
            }
            0x8a | 0x8b => self.long(op)?,
            b'G' => {
                self.take(8)?;
                self.push(Value::Other);
            }
            b'X' | 0x8c | 0x8d => {
                let text = self.counted(match op {
                    b'X' => 4,
                    0x8c => 1,
                    _ => 8,
                })?;
                let text = std::str::from_utf8(text).map_err(|_| "a text that is not UTF-8")?.to_owned();
                self.push(Value::Text(text));
            }
            b'U' | b'C' | b'T' | b'B' | 0x8e => {
                self.counted(match op {
                    b'U' | b'C' => 1,
                    0x8e => 8,
                    _ => 4,
                })?;
                self.push(Value::Other);
            }
            b'}' => self.push(Value::Dict(Vec::new())),
            b']' => self.push(Value::List(Vec::new())),
            b')' => self.push(Value::Tuple(Vec::new())),
            0x8f => self.push(Value::Other), // EMPTY_SET
            0x85..=0x87 => {
                let items = self.pop_n(usize::from(op - 0x84))?;
                self.push(Value::Tuple(items));
            }
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Value::Tuple(items));
            }
            b'l' => {
                let items = self.pop_to_mark()?;
                self.push(Value::List(items));
            }
            b'd' => {
                let items = self.pop_to_mark()?;
                self.push(Value::Dict(pairs(&items)?));
            }
            0x90 | 0x91 => {
                self.pop_to_mark()?; // ADDITEMS, FROZENSET
                if op == 0x91 {
                    self.push(Value::Other);
                }
            }
            b'a' => {
                let item = self.pop()?;
                self.extend(&[item])?;
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                self.extend(&items)?;
            }
            b's' => {
                let items = self.pop_n(2)?;
                self.insert(&items)?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.insert(&items)?;
            }
            b'q' => {
                let key = self.number(1)?;
                self.memoize(key)?;
            }
            b'r' => {
                let key = self.number(4)?;
                self.memoize(key)?;
            }
            0x94 => self.memoize(self.memo.len() as u64)?,
            b'h' => self.recall(1)?,
            b'j' => self.recall(4)?,
            b'c' => {
                let module = self.line()?;
                let name = self.line()?;
                let (module, name) = (self.store(Value::Text(module)), self.store(Value::Text(name)));
                self.push(Value::Class(module, name));
            }
            0x93 => {
                let items = self.pop_n(2)?; // STACK_GLOBAL
                self.push(Value::Class(items[0], items[1]));
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Storage(id));
            }
            b'R' | 0x81 => {
                let items = self.pop_n(2)?; // REDUCE, NEWOBJ
                let value = self.call(items[0], items[1]);
                self.push(value);
            }
            0x92 => {
                let items = self.pop_n(3)?; // NEWOBJ_EX
                let value = self.call(items[0], items[1]);
                self.push(value);
            }
            b'b' => {
                let new_state = self.pop()?;
                if let Value::Object { state, .. } = self.top_value()? {
                    *state = Some(new_state);
                }
            }
            _ => return Err(format!("the instruction 0x{op:02x}, which no state dict needs")),
        }
        Ok(())
    }

    /// Keeps a value without putting it on the stack. There are fewer values than bytes, so their numbers fit.
    fn store(&mut self, value: Value) -> Id {
        self.values.push(value);
        (self.values.len() - 1) as Id
    }

    fn push(&mut self, value: Value) {
        let id = self.store(value);
        self.stack.push(id);
    }

    fn top_value(&mut self) -> Result<&mut Value, String> {
        let id = self.top()?;
        self.values.get_mut(id as usize).ok_or_else(|| "a value that does not exist".to_owned())
    }

    fn pop(&mut self) -> Result<Id, String> {
        self.stack.pop().ok_or_else(|| "takes a value from an empty stack".to_owned())
    }

    fn top(&self) -> Result<Id, String> {
        self.stack.last().copied().ok_or_else(|| "needs a value on an empty stack".to_owned())
    }

    fn pop_n(&mut self, n: usize) -> Result<Vec<Id>, String> {
        let from = self.stack.len().checked_sub(n).ok_or("takes values from an empty stack")?;
        Ok(self.stack.split_off(from))
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, String> {
        let is_mark = |id: &Id| *self.value(*id) == Value::Mark;
        let mark = self.stack.iter().rposition(is_mark).ok_or("no start of the items on the stack")?;
        let items = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(items)
    }

    fn extend(&mut self, items: &[Id]) -> Result<(), String> {
        match self.top_value()? {
            Value::List(list) => list.extend_from_slice(items),
            Value::Object { .. } | Value::Other => {}
            _ => return Err("appends to what is not a list".into()),
        }
        Ok(())
    }

    fn insert(&mut self, items: &[Id]) -> Result<(), String> {
        let new = pairs(items)?;
        match self.top_value()? {
            Value::Dict(dict) => dict.extend(new),
            Value::Object { .. } | Value::Other => {}
            _ => return Err("sets items of what is not a dictionary".into()),
        }
        Ok(())
    }

    fn memoize(&mut self, key: u64) -> Result<(), String> {
        let id = self.top()?;
        self.memo.insert(key, id);
        Ok(())
    }

    fn recall(&mut self, width: usize) -> Result<(), String> {
        let key = self.number(width)?;
        let id = *self.memo.get(&key).ok_or_else(|| format!("recalls value {key}, which was never stored"))?;
        self.stack.push(id);
        Ok(())
    }

    /// What a call would have made.
    fn call(&self, callee: Id, arguments: Id) -> Value {
        let (Some(class), Value::Tuple(arguments)) = (class_name(&self.values, callee), self.value(arguments)) else {
            return Value::Other;
        };
        match (class, arguments.as_slice()) {
            (("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor"), [storage, offset, shape, strides, ..]) => {
                Value::Tensor([*storage, *offset, *shape, *strides])
            }
            (("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state"), [tensor, ..])
            | (("torch.nn.parameter", "Parameter"), [tensor, ..]) => match self.value(*tensor) {
                Value::Tensor(parts) => Value::Tensor(*parts),
                _ => Value::Other,
            },
            (("collections", "OrderedDict"), []) => Value::Dict(Vec::new()),
            _ => Value::Object { class: callee, state: None },
        }
    }

    fn value(&self, id: Id) -> &Value {
        value(&self.values, id)
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?[0])
    }

    fn take(&mut self, n: usize) -> Result<&[u8], String> {
        let end = self.at.checked_add(n).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| format!("{n} bytes are wanted at byte {}, after the end", self.at))?;
        let start = std::mem::replace(&mut self.at, end);
        Ok(&self.bytes[start..end])
    }

    /// A little-endian number without sign.
    fn number(&mut self, width: usize) -> Result<u64, String> {
        Ok(self.take(width)?.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    fn int(&mut self, width: usize) -> Result<(), String> {
        let value = self.number(width)? as i64;
        self.push(Value::Int(value));
        Ok(())
    }

    /// LONG1 and LONG4: integers of any size; what does not fit 64 bits names no size.
    fn long(&mut self, op: u8) -> Result<(), String> {
        let bytes = self.counted(if op == 0x8a { 1 } else { 4 })?;
        let value = if bytes.len() > 8 {
            Value::Other
        } else {
            let sign = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { -1i64 } else { 0 };
            Value::Int(bytes.iter().rev().fold(sign, |value, byte| value << 8 | i64::from(*byte)))
        };
        self.push(value);
        Ok(())
    }

    /// Bytes behind their number, which is `width` bytes wide.
    fn counted(&mut self, width: usize) -> Result<&[u8], String> {
        let n = self.number(width)?;
        self.take(usize::try_from(n).map_err(|_| format!("a length of {n} bytes"))?)
    }

    fn line(&mut self) -> Result<String, String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().take(1024).position(|byte| *byte == b'\n').ok_or("a name without an end")?;
        let line = std::str::from_utf8(&rest[..end]).map_err(|_| "a name that is not UTF-8")?.to_owned();
        self.at += end + 1;
        Ok(line)
    }
}

fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>, String> {
    if items.len() % 2 == 1 {
        return Err("a key without a value".into());
    }
    Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}
