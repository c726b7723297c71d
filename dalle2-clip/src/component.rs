//! A component on disk: `config.json` with `_class_name`, and `model.safetensors`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::Module;
use dalle2_core::store::{self, Precision};
use dalle2_core::{Error, Result};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

const CLASS_KEY: &str = "_class_name";

fn config_path(dir: &Path) -> PathBuf {
    dir.join("config.json")
}

/// The weights file of a component.
fn weights_path(dir: &Path) -> PathBuf {
    dir.join("model.safetensors")
}

/// Writes configuration and weights; `name` gives the tensor name for a field path.
pub(crate) fn save<C: Serialize, M: Module>(
    dir: &Path,
    class: &str,
    config: &C,
    module: &M,
    precision: Precision,
    name: &dyn Fn(&str) -> String,
) -> Result<()> {
    store::save_module_as(module, weights_path(dir), precision, &BTreeMap::new(), name)?;
    let path = config_path(dir);
    let fields = serde_json::to_value(config).map_err(|e| Error::json(&path, e))?;
    let mut object = Map::from_iter([(CLASS_KEY.to_owned(), Value::from(class))]);
    if let Value::Object(fields) = fields {
        object.extend(fields);
    }
    store::write_json(&path, &object)
}

/// Reads a configuration and checks that it is of `class`.
pub(crate) fn load_config<C: DeserializeOwned>(dir: &Path, class: &str) -> Result<C> {
    let path = config_path(dir);
    let mut object: Map<String, Value> = store::read_json(&path)?;
    match object.remove(CLASS_KEY) {
        Some(Value::String(found)) if found == class => {}
        Some(found) => return Err(Error::format(&path, format!("{CLASS_KEY} is {found}, must be \"{class}\""))),
        None => return Err(Error::format(&path, format!("{CLASS_KEY} is missing, must be \"{class}\""))),
    }
    serde_json::from_value(Value::Object(object)).map_err(|e| Error::json(&path, e))
}

/// Reads the weights of `module`.
pub(crate) fn load_weights<M: Module>(dir: &Path, module: M, name: &dyn Fn(&str) -> String) -> Result<M> {
    store::load_module_as(module, weights_path(dir), name)
}
