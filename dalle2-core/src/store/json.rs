//! JSON files, and files that appear whole or not at all.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Serialize, de::DeserializeOwned};

use crate::{Error, Result};

/// Largest JSON file that is read, in bytes: configurations are small, and a wrong file should not fill the memory.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// Reads a JSON file.
///
/// # Errors
/// When the file cannot be read, is larger than 64 MiB, or does not have the form of `T`; the path is named, and for a
/// wrong form also the field, line and column.
pub fn read_json<T: DeserializeOwned>(path: impl AsRef<Path>) -> Result<T> {
    let path = path.as_ref();
    let size = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
    if size > MAX_JSON_BYTES {
        let message = format!("is {size} bytes long; a configuration has at most {MAX_JSON_BYTES}");
        return Err(Error::format(path, message));
    }
    let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let mut reader = serde_json::Deserializer::from_slice(&text);
    let value = parse(path, &mut reader)?;
    reader.end().map_err(|e| Error::json(path, e))?;
    Ok(value)
}

/// Reads a value and names the field at fault, which serde itself does not do for a wrong type.
fn parse<'de, T: serde::Deserialize<'de>, D>(path: &Path, reader: D) -> Result<T>
where
    D: serde::Deserializer<'de, Error = serde_json::Error>,
{
    serde_path_to_error::deserialize(reader).map_err(|e| match e.path().to_string() {
        root if root == "." => Error::json(path, e.into_inner()),
        field => Error::format(path, format!("`{field}`: {}", e.into_inner())),
    })
}

/// Writes a value as indented JSON, atomically.
///
/// # Errors
/// When the file cannot be written.
pub fn write_json<T: Serialize + ?Sized>(path: impl AsRef<Path>, value: &T) -> Result<()> {
    let path = path.as_ref();
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| Error::json(path, e))?;
    text.push(b'\n');
    write_file(path, &text)
}

/// Writes a file to a temporary name in the same directory, flushes it to disk and renames it.
///
/// The directory is created if it does not exist.
///
/// # Errors
/// When the directory or the file cannot be written; a file that was there before is then untouched.
pub fn write_file(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let path = path.as_ref();
    let mut file = UnfinishedFile::create(path)?;
    file.file().write_all(bytes).map_err(|e| Error::io(path, e))?;
    file.finish()
}

/// A file under a temporary name beside the one it will have; dropped unfinished, it disappears.
#[derive(Debug)]
pub(super) struct UnfinishedFile {
    path: PathBuf,
    file: tempfile::NamedTempFile,
}

impl UnfinishedFile {
    /// Creates the directory and the temporary file.
    pub(super) fn create(path: &Path) -> Result<Self> {
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(".writing-");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let file = builder.tempfile_in(dir).map_err(|e| Error::io(path, e))?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&mut self) -> &mut File {
        self.file.as_file_mut()
    }

    /// Flushes the file to disk and gives it its name.
    pub(super) fn finish(self) -> Result<()> {
        let Self { path, file } = self;
        file.as_file().sync_all().map_err(|e| Error::io(&path, e))?;
        file.persist(&path).map_err(|e| Error::io(&path, e.error))?;
        Ok(())
    }
}

/// Name of a component's configuration file inside its directory.
pub const CONFIG_FILE: &str = "config.json";

/// Name of a component's weights file inside its directory.
pub const WEIGHTS_FILE: &str = "model.safetensors";

/// Writes a component's configuration to `dir/config.json` with its class name and the library's version.
///
/// # Errors
/// When the value is not a JSON object or the file cannot be written.
pub fn write_config<T: Serialize>(dir: impl AsRef<Path>, class: &str, config: &T) -> Result<()> {
    let path = dir.as_ref().join(CONFIG_FILE);
    let value = serde_json::to_value(config).map_err(|e| Error::json(&path, e))?;
    let serde_json::Value::Object(fields) = value else {
        return Err(Error::format(&path, "a configuration must be a JSON object"));
    };
    let mut object = serde_json::Map::new();
    object.insert("_class_name".into(), class.into());
    object.insert("_dalle2_version".into(), env!("CARGO_PKG_VERSION").into());
    object.extend(fields);
    write_json(&path, &object)
}

/// Reads a component's configuration from `dir/config.json`.
///
/// # Errors
/// When the file cannot be read, names another class than `class`, or lacks a field, has an unknown one or one of a
/// wrong type.
pub fn read_config<T: DeserializeOwned>(dir: impl AsRef<Path>, class: &str) -> Result<T> {
    let path = dir.as_ref().join(CONFIG_FILE);
    let mut object: serde_json::Map<String, serde_json::Value> = read_json(&path)?;
    match object.remove("_class_name") {
        Some(serde_json::Value::String(name)) if name == class => {}
        Some(name) => return Err(Error::format(&path, format!("`_class_name` is {name}, expected \"{class}\""))),
        None => return Err(Error::format(&path, format!("`_class_name` is missing, expected \"{class}\""))),
    }
    object.remove("_dalle2_version");
    parse(&path, serde_json::Value::Object(object))
}
