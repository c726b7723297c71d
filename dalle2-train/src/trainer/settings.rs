//! Configurations from defaults, a file and single settings.

use std::path::Path;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use dalle2_core::store::read_json;
use dalle2_core::{ConfigError, Error, Result};

/// `defaults`, changed by a JSON file and then by settings of the form `key=value`, such as `train.learning_rate=1e-3` or
/// `model.unet.channels=[32,64]`.
///
/// The file has the form of `T` and may leave out what stays as it is. The key of a setting names a field by its path, and
/// numbers name the elements of lists; the value is JSON, or a text without quotes. An enum with fields is replaced
/// as a whole.
///
/// ```
/// use dalle2_train::{Schedule, TrainConfig, resolve};
///
/// let settings = ["learning_rate=1e-3", "schedule=constant", "ema_decay=null"].map(String::from);
/// let config: TrainConfig = resolve(&TrainConfig::default(), None, &settings)?;
/// assert_eq!((config.learning_rate, config.schedule, config.ema_decay), (1e-3, Schedule::Constant, None));
///
/// let error = resolve(&TrainConfig::default(), None, &["learning_rat=1".to_string()]).unwrap_err();
/// assert!(error.to_string().contains("`learning_rat`"));
/// # Ok::<(), dalle2_core::Error>(())
/// ```
///
/// # Errors
/// When the file cannot be read, a key is not known, or a value is of the wrong type; the file or setting and the field
/// are named.
pub fn resolve<T: Serialize + DeserializeOwned>(defaults: &T, file: Option<&Path>, settings: &[String]) -> Result<T> {
    let mut value = serde_json::to_value(defaults).map_err(|e| Error::Input(format!("the defaults: {e}")))?;
    if let Some(path) = file {
        let new: Value = read_json(path)?;
        value = merged::<T>(&value, &new)
            .map_err(|Fault { field, problem }| Error::format(path, format!("`{field}`: {problem}")))?;
    }
    for setting in settings {
        let Some((key, text)) = setting.split_once('=') else {
            let expected = "must have the form key=value, such as train.steps=1000";
            return Err(ConfigError::new("set", setting, expected).into());
        };
        let new = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_string()));
        set(&mut value, key, new).map_err(|problem| ConfigError::new(key, text, problem))?;
        read::<T>(&value).map_err(|Fault { field, problem }| {
            // The fault came with this setting; without a path it is the setting itself.
            let field = if field == "." { key.to_string() } else { field };
            ConfigError::new(field, text, problem)
        })?;
    }
    read(&value).map_err(|Fault { field, problem }| Error::Input(format!("`{field}`: {problem}")))
}

/// A fault in a value, with its path.
struct Fault {
    field: String,
    problem: String,
}

/// Reads a value, and refuses keys that were not read.
fn read<T: Serialize + DeserializeOwned>(value: &Value) -> Result<T, Fault> {
    let parsed: T = serde_path_to_error::deserialize(value).map_err(|e| {
        let unknown = e.inner().to_string();
        // serde names an unknown field in its message and the structure around it in its path.
        let name = unknown.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next()).map(str::to_string);
        let path = e.path().to_string();
        let field = match name {
            Some(name) if path == "." => name,
            Some(name) if !path.ends_with(&name) => format!("{path}.{name}"),
            _ => path,
        };
        Fault { field, problem: unknown }
    })?;
    let known = serde_json::to_value(&parsed).map_err(|e| Fault { field: ".".into(), problem: e.to_string() })?;
    let mut missing = Vec::new();
    unread("", value, &known, &mut missing);
    match missing.into_iter().find(|path| !is_switch::<T>(value, path)) {
        Some(path) => {
            Err(Fault { field: path.trim_start_matches('/').replace('/', "."), problem: "unknown field".into() })
        }
        None => Ok(parsed),
    }
}

/// The keys of `given` that `known` lacks, as JSON pointers. What is null may be left out.
fn unread(path: &str, given: &Value, known: &Value, missing: &mut Vec<String>) {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => given.iter().for_each(|(key, value)| {
            let path = format!("{path}/{key}");
            match known.get(key) {
                Some(known) => unread(&path, value, known, missing),
                None if value.is_null() => (),
                None => missing.push(path),
            }
        }),
        (Value::Array(given), Value::Array(known)) => {
            let both = given.iter().zip(known).enumerate();
            both.for_each(|(index, (given, known))| unread(&format!("{path}/{index}"), given, known, missing));
        }
        _ => (),
    }
}

/// Whether there is a switch at `path` that is off, and left out of its JSON for that: it is there when it is on.
fn is_switch<T: Serialize + DeserializeOwned>(value: &Value, path: &str) -> bool {
    let mut on = value.clone();
    match on.pointer_mut(path) {
        Some(off) if *off == Value::Bool(false) => *off = Value::Bool(true),
        _ => return false,
    }
    let known = serde_json::from_value::<T>(on).and_then(|parsed| serde_json::to_value(&parsed));
    known.is_ok_and(|known| known.pointer(path).is_some())
}

/// The meaning of an object with another single key than the object it is merged into.
#[derive(Clone, Copy, PartialEq)]
enum OtherKey {
    /// Adds a field.
    Field,
    /// Takes its place: they are variants of an enum.
    Variant,
}

/// `old` with `new` in it, in the form of `T`. Fields and variants look alike in JSON, so both readings are tried.
fn merged<T: Serialize + DeserializeOwned>(old: &Value, new: &Value) -> Result<Value, Fault> {
    let attempt = |other_key| {
        let mut value = old.clone();
        merge(&mut value, new.clone(), other_key);
        read::<T>(&value).map(|_| value)
    };
    attempt(OtherKey::Field).or_else(|fault| attempt(OtherKey::Variant).map_err(|_| fault))
}

/// Puts `new` in the place of `old`, objects field by field.
fn merge(old: &mut Value, new: Value, other_key: OtherKey) {
    match (old, new) {
        (Value::Object(old), Value::Object(new))
            if other_key == OtherKey::Field || !(old.len() == 1 && new.len() == 1 && old.keys().ne(new.keys())) =>
        {
            for (key, value) in new {
                merge(old.entry(key).or_insert(Value::Null), value, other_key);
            }
        }
        (old, new) => *old = new,
    }
}

/// Replaces the value at a path.
fn set(value: &mut Value, key: &str, new: Value) -> Result<(), String> {
    let mut at = value;
    for name in key.split('.') {
        at = match at {
            Value::Array(list) => {
                let len = list.len();
                let element = name.parse::<usize>().ok().and_then(|index| list.get_mut(index));
                element.ok_or_else(|| format!("`{name}` is not an element of a list of {len}"))?
            }
            Value::Object(fields) => fields.entry(name).or_insert(Value::Null),
            other => {
                if !other.is_null() {
                    return Err(format!("`{name}` is not a field: what should hold it is {other}"));
                }
                *other = Value::Object(Map::new());
                let Value::Object(fields) = other else { return Err(format!("`{name}` is not a field")) };
                fields.entry(name).or_insert(Value::Null)
            }
        };
    }
    *at = new;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Schedule, TrainConfig};
    use dalle2_core::store::write_file;
    use serde::Deserialize;

    /// Without `deny_unknown_fields`, as what Burn derives.
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Net {
        channels: Vec<usize>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        heads: Option<usize>,
        /// Not written when it is off.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        wide: bool,
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Whole {
        train: TrainConfig,
        model: Net,
    }

    fn defaults() -> Whole {
        Whole { train: TrainConfig::default(), model: Net { channels: vec![8, 16], heads: None, wide: true } }
    }

    fn resolved(file: &str, settings: &[&str]) -> Result<Whole> {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("run.json");
        write_file(&path, file.as_bytes()).unwrap();
        resolve(&defaults(), Some(&path), &settings.iter().map(|s| s.to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn a_file_and_then_settings_change_the_defaults() {
        let file = r#"{"train": {"steps": 7, "schedule": {"cosine_restarts": {"period": 5, "growth": 1,
            "final_fraction": 0.5}}}, "model": {"channels": [1, 2, 3]}}"#;
        let actual = resolved(file, &["train.steps=9", "model.heads=4", "model.channels.1=20"]).unwrap();
        let schedule = Schedule::CosineRestarts { period: 5, growth: 1, final_fraction: 0.5 };
        let train = TrainConfig { steps: 9, schedule, ..TrainConfig::default() };
        assert_eq!(actual, Whole { train, model: Net { channels: vec![1, 20, 3], heads: Some(4), wide: true } });
        let back = resolved(file, &["train.schedule=inverse_sqrt", "train.max_grad_norm=null"]).unwrap();
        assert_eq!((back.train.schedule, back.train.max_grad_norm), (Schedule::InverseSqrt, None));
        assert_eq!(resolved("{}", &[]).unwrap(), defaults());
    }

    #[test]
    fn a_switch_that_is_left_out_when_it_is_off_can_be_switched_off() {
        assert!(!resolved("{}", &["model.wide=false"]).unwrap().model.wide);
        assert!(!resolved(r#"{"model": {"wide": false}}"#, &["model.heads=2"]).unwrap().model.wide);
        let message = resolved("{}", &["model.wider=false"]).unwrap_err().to_string();
        assert!(message.contains("`model.wider` = false: unknown field"), "{message}");
    }

    #[test]
    fn what_is_not_known_or_of_another_type_is_named() {
        let message = |file: &str, settings: &[&str]| resolved(file, settings).unwrap_err().to_string();
        let actual = message(r#"{"train": {"lerning_rate": 1}}"#, &[]);
        assert!(actual.contains("run.json") && actual.contains("`train.lerning_rate`"), "{actual}");
        let actual = message(r#"{"model": {"widths": [1]}}"#, &[]);
        assert!(actual.contains("`model.widths`"), "{actual}");
        let actual = message("{}", &["model.depth=3"]);
        assert!(actual.contains("`model.depth` = 3: unknown field"), "{actual}");
        let actual = message("{}", &["train.steps=many"]);
        assert!(actual.contains("`train.steps` = many") && actual.contains("expected u64"), "{actual}");
        let actual = message("{}", &["train.steps.first=1"]);
        assert!(actual.contains("`train.steps.first`") && actual.contains("is not a field"), "{actual}");
        let actual = message("{}", &["model.channels.7=1"]);
        assert!(actual.contains("list of 2"), "{actual}");
        let actual = message("{}", &["steps"]);
        assert!(actual.contains("key=value"), "{actual}");
        let actual = message("{}", &["train.schedule.cosine_restarts.period=5"]);
        assert!(actual.contains("schedule"), "{actual}");
        let actual = message("[1]", &[]);
        assert!(actual.contains("run.json"), "{actual}");
    }
}
