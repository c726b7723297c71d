//! JSON objects of others, read key by key.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::read_json;
use crate::{Error, Result};

/// The object in a JSON file, whose keys are asked for one by one; every error names the file and the key.
#[derive(Debug, Clone)]
pub struct Fields {
    path: PathBuf,
    object: Map<String, Value>,
}

impl Fields {
    /// Reads a file.
    ///
    /// # Errors
    /// When the file cannot be read or does not hold a JSON object.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let value: Value = read_json(path)?;
        match value {
            Value::Object(object) => Ok(Self { path: path.to_owned(), object }),
            other => Err(Error::format(path, format!("holds {}, expected an object", short(&other)))),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The keys and values as they are in the file.
    pub fn object(&self) -> &Map<String, Value> {
        &self.object
    }

    /// The value of a key, or `default` where the file does not have the key.
    ///
    /// # Errors
    /// When the value has another type.
    pub fn get<T: DeserializeOwned>(&self, key: &str, default: T) -> Result<T> {
        match self.object.get(key) {
            None => Ok(default),
            Some(value) => self.parse(key, value),
        }
    }

    /// The value of a key that must be there.
    ///
    /// # Errors
    /// When the key is missing or its value has another type.
    pub fn require<T: DeserializeOwned>(&self, key: &str) -> Result<T> {
        match self.object.get(key) {
            None => Err(Error::format(&self.path, format!("`{key}` is missing"))),
            Some(value) => self.parse(key, value),
        }
    }

    /// Accepts a key that is missing, null or has one of these values: what this library does is what they mean.
    ///
    /// # Errors
    /// When the key has another value.
    pub fn only(&self, key: &str, allowed: &[Value]) -> Result<()> {
        match self.object.get(key) {
            None | Some(Value::Null) => Ok(()),
            Some(found) if allowed.iter().any(|value| same(value, found)) => Ok(()),
            Some(found) => {
                let allowed: Vec<String> = allowed.iter().map(short).collect();
                let allowed = if allowed.is_empty() { "null".to_owned() } else { allowed.join(" or ") };
                Err(self.error(key, format!("is {}; this library can express {allowed} only", short(found))))
            }
        }
    }

    /// Accepts the keys in `known`, private ones (which begin with `_`), and those whose value switches nothing on.
    ///
    /// # Errors
    /// Names every other key.
    pub fn no_others(&self, known: &[&str]) -> Result<()> {
        let idle = |value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(items) => items.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            _ => false,
        };
        let unknown: Vec<String> = self
            .object
            .iter()
            .filter(|(key, value)| !key.starts_with('_') && !known.contains(&key.as_str()) && !idle(value))
            .map(|(key, value)| format!("`{key}` = {}", short(value)))
            .collect();
        match unknown.is_empty() {
            true => Ok(()),
            false => Err(Error::format(&self.path, format!("has settings that are not known: {}", unknown.join(", ")))),
        }
    }

    /// Checks `_class_name`.
    ///
    /// # Errors
    /// When the class is missing or another one.
    pub fn class(&self, expected: &str) -> Result<()> {
        match self.object.get("_class_name") {
            Some(Value::String(class)) if class == expected => Ok(()),
            Some(other) => Err(self.error("_class_name", format!("is {}, expected \"{expected}\"", short(other)))),
            None => Err(self.error("_class_name", format!("is missing, expected \"{expected}\""))),
        }
    }

    /// An error about a key: "`key` …".
    pub fn error(&self, key: &str, message: impl AsRef<str>) -> Error {
        Error::format(&self.path, format!("`{key}` {}", message.as_ref()))
    }

    fn parse<T: DeserializeOwned>(&self, key: &str, value: &Value) -> Result<T> {
        T::deserialize(value).map_err(|e| self.error(key, format!("= {}: {e}", short(value))))
    }
}

/// Numbers compare by value: JSON writers differ in whether they write 1 or 1.0.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

/// A value as text, cut where it is long.
fn short(value: &Value) -> String {
    const SHOWN: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(object: Value) -> Fields {
        let Value::Object(object) = object else { panic!("an object") };
        Fields { path: "unet/config.json".into(), object }
    }

    #[test]
    fn values_are_read_and_wrong_ones_name_file_and_key() {
        let fields = fields(json!({"n": 3, "none": null, "text": "3", "act": "mish"}));
        assert_eq!(fields.get("n", 0usize).unwrap(), 3);
        assert_eq!(fields.get("missing", 7usize).unwrap(), 7);
        assert_eq!(fields.get("none", Some(1usize)).unwrap(), None);
        let wrong = fields.get("text", 0usize).unwrap_err().to_string();
        let missing = fields.require::<usize>("missing").unwrap_err().to_string();
        let class = fields.class("UNet2DModel").unwrap_err().to_string();
        let other = fields.only("act", &[json!("silu"), json!("swish")]).unwrap_err().to_string();
        for (message, parts) in [
            (&wrong, ["`text`", "\"3\""]),
            (&missing, ["`missing`", "missing"]),
            (&class, ["`_class_name`", "UNet2DModel"]),
            (&other, ["mish", "\"silu\" or \"swish\""]),
        ] {
            assert!(message.starts_with("unet/config.json: "), "{message}");
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
    }

    #[test]
    fn numbers_are_equal_by_value_and_only_active_unknown_keys_are_refused() {
        let fields = fields(json!({"scale": 1, "_private": 4, "off": false, "empty": [], "new": 2}));
        fields.only("scale", &[json!(1.0)]).unwrap();
        fields.no_others(&["scale", "new"]).unwrap();
        let message = fields.no_others(&["scale"]).unwrap_err().to_string();
        assert!(message.contains("`new` = 2") && !message.contains("off"), "{message}");
    }
}
