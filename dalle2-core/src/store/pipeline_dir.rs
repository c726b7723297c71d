//! Pipeline directories: `model_index.json` and a folder per part, installed one part at a time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::lock::DirLock;
use super::{read_json, write_json};
use crate::{Component, ConfigError, Error, FloatType, Result};

/// Longest wait for another writer of the same directory; installing a part takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// Start of the name of a part that is being written.
const INSTALLING: &str = ".installing-";

/// A pipeline directory to which parts are added one by one, as training runs do.
///
/// [`PipelineDir::install`] replaces a part as a whole: a process that is killed leaves the old part or the new one.
/// Several processes can install parts into one directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipelineDir {
    dir: PathBuf,
}

impl PipelineDir {
    /// Name of the file that lists the parts.
    pub const INDEX_FILE: &'static str = "model_index.json";
    /// Class name of a pipeline in this library's own layout.
    pub const CLASS: &'static str = "Dalle2Pipeline";
    /// Library name beside the class names of the parts.
    pub const LIBRARY: &'static str = "dalle2";

    /// Opens a directory. It may be missing: the first installation creates it.
    ///
    /// # Errors
    /// If `dir` is a file, or holds a pipeline in another layout.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref().to_path_buf();
        if dir.exists() && !dir.is_dir() {
            return Err(Error::format(&dir, "is a file: a pipeline is a directory"));
        }
        let pipeline = Self { dir };
        pipeline.read_index()?;
        Ok(pipeline)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Writes `part` into the folder `name`, replacing the part that is there, and lists it in the index.
    ///
    /// The weights are written to a temporary folder first, which is then renamed; the index is written last. Waits up
    /// to a minute for another writer.
    ///
    /// # Errors
    /// If `name` is not `text_encoder`, `image_encoder`, `prior`, `decoder` or `upsampler_N`, a file cannot be written,
    /// or another writer does not finish.
    pub fn install(&mut self, name: &str, part: &dyn Component, float_type: FloatType) -> Result<()> {
        check_part_name(name)?;
        let _lock = DirLock::acquire_within(&self.dir, PATIENCE)?;
        let mut index = self.read_index()?;
        self.restore(name)?;
        let staging = tempfile::Builder::new().prefix(INSTALLING).tempdir_in(&self.dir);
        let staging = staging.map_err(|e| Error::io(&self.dir, e))?;
        let (new, target, old) = (staging.path().join(name), self.dir.join(name), self.replaced(name));
        part.save(&new, float_type)?;
        if target.exists() {
            rename(&target, &old)?;
        }
        rename(&new, &target)?;
        index.insert("_class_name".into(), Self::CLASS.into());
        index.insert("_dalle2_version".into(), env!("CARGO_PKG_VERSION").into());
        index.insert(name.to_owned(), json!([Self::LIBRARY, part.class_name()]));
        write_json(self.dir.join(Self::INDEX_FILE), &index)?;
        remove(&old)
    }

    /// Returns where a part is moved while its replacement takes its place.
    fn replaced(&self, name: &str) -> PathBuf {
        self.dir.join(format!(".{name}.replaced"))
    }

    /// Repairs an installation that was interrupted between the two renames.
    fn restore(&self, name: &str) -> Result<()> {
        let (target, old) = (self.dir.join(name), self.replaced(name));
        if old.exists() && !target.exists() { rename(&old, &target) } else { remove(&old) }
    }

    fn read_index(&self) -> Result<BTreeMap<String, Value>> {
        let path = self.dir.join(Self::INDEX_FILE);
        if !path.exists() {
            return Ok(BTreeMap::new());
        }
        let index: BTreeMap<String, Value> = read_json(&path)?;
        if index.get("_class_name").and_then(Value::as_str) != Some(Self::CLASS) {
            let message = format!("is not the index of a {}: choose another directory", Self::CLASS);
            return Err(Error::format(&path, message));
        }
        Ok(index)
    }
}

/// Checks that a folder name is the name of a part.
fn check_part_name(name: &str) -> Result<(), ConfigError> {
    let is_upsampler = name
        .strip_prefix("upsampler_")
        .is_some_and(|number| number.parse::<u8>().is_ok_and(|value| value > 0 && value.to_string() == number));
    if is_upsampler || ["text_encoder", "image_encoder", "prior", "decoder"].contains(&name) {
        return Ok(());
    }
    let expected = "must be text_encoder, image_encoder, prior, decoder, upsampler_1, upsampler_2, …";
    Err(ConfigError::new("part", name, expected))
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).map_err(|e| Error::io(to, e))
}

/// Removes a directory if it exists.
fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::write_file;

    /// A part that writes one file, or fails after it.
    struct Text(&'static str, Result<(), ()>);

    impl Component for Text {
        fn class_name(&self) -> &str {
            "Text"
        }

        fn save(&self, dir: &Path, _float_type: FloatType) -> Result<()> {
            write_file(dir.join("text"), self.0.as_bytes())?;
            self.1.map_err(|()| Error::Input("no space left".into()))
        }
    }

    fn read(dir: &Path) -> String {
        std::fs::read_to_string(dir.join("prior/text")).unwrap()
    }

    #[test]
    fn a_part_is_replaced_as_a_whole_or_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut pipeline = PipelineDir::open(dir.path().join("export")).unwrap();
        pipeline.install("prior", &Text("one", Ok(())), FloatType::F32).unwrap();
        assert_eq!(read(pipeline.path()), "one");
        pipeline.install("prior", &Text("two", Ok(())), FloatType::F32).unwrap();
        assert_eq!(read(pipeline.path()), "two");
        assert!(pipeline.install("prior", &Text("three", Err(())), FloatType::F32).is_err());
        assert_eq!(read(pipeline.path()), "two");
        let index = pipeline.read_index().unwrap();
        assert_eq!(index["prior"], json!(["dalle2", "Text"]));
        let mut names: Vec<_> = std::fs::read_dir(pipeline.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [".lock", "model_index.json", "prior"], "no temporary folder is left");
    }

    #[test]
    fn an_interrupted_replacement_is_repaired() {
        let dir = tempfile::tempdir().unwrap();
        let mut pipeline = PipelineDir::open(dir.path()).unwrap();
        pipeline.install("prior", &Text("one", Ok(())), FloatType::F32).unwrap();
        rename(&dir.path().join("prior"), &pipeline.replaced("prior")).unwrap();
        assert!(pipeline.install("prior", &Text("two", Err(())), FloatType::F32).is_err());
        assert_eq!(read(dir.path()), "one");
    }

    #[test]
    fn names_that_are_not_parts_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut pipeline = PipelineDir::open(dir.path()).unwrap();
        for name in
            ["", "..", "a/b", "/tmp/prior", "Prior", "upsampler_0", "upsampler_01", "upsampler_x", "model_index.json"]
        {
            let message = pipeline.install(name, &Text("one", Ok(())), FloatType::F32).unwrap_err().to_string();
            assert!(message.contains("text_encoder") && message.contains(name), "{message}");
        }
        pipeline.install("upsampler_12", &Text("one", Ok(())), FloatType::F32).unwrap();
    }

    #[test]
    fn other_directories_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        write_file(dir.path().join("file"), b"text").unwrap();
        assert!(PipelineDir::open(dir.path().join("file")).unwrap_err().to_string().contains("is a file"));
        write_json(dir.path().join(PipelineDir::INDEX_FILE), &json!({"_class_name": "UnCLIPPipeline"})).unwrap();
        assert!(PipelineDir::open(dir.path()).unwrap_err().to_string().contains("another directory"));
    }

    #[test]
    fn two_writers_take_turns() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for name in ["prior", "decoder", "text_encoder", "image_encoder"] {
                let dir = dir.path();
                scope.spawn(move || {
                    let mut pipeline = PipelineDir::open(dir).unwrap();
                    pipeline.install(name, &Text("one", Ok(())), FloatType::F32).unwrap();
                });
            }
        });
        assert_eq!(PipelineDir::open(dir.path()).unwrap().read_index().unwrap().len(), 6);
    }
}
