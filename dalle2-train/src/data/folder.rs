//! A folder of images with a caption file beside each.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::files::{ImageFiles, Item};
use super::items::{Problems, caption};
use dalle2_core::{Error, Result};

const EXTENSIONS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

impl ImageFiles {
    /// Images (`.png`, `.jpg`, `.jpeg`, `.webp`) of a folder and the folders in it, each with its caption as the first
    /// line of the text file of the same name: `cats/tom.png` and `cats/tom.txt`.
    ///
    /// Items are in the order of their paths, so a copy of the folder gives the same data set.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be read, [`Error::Format`] if no image has a caption.
    pub fn folder(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let mut problems = Problems::default();
        let mut paths = Vec::new();
        list(dir, &mut paths, &mut problems).map_err(|e| Error::io(dir, e))?;
        paths.sort();
        let mut items = Vec::with_capacity(paths.len());
        for path in paths {
            let beside = path.with_extension("txt");
            let text = match fs::read(&beside) {
                Ok(bytes) => String::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_string()),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    problems.report(path.display(), format!("lacks a caption: {} is missing", beside.display()));
                    continue;
                }
                Err(e) => Err(e.to_string()),
            };
            match text.and_then(|text| caption(&text).ok_or_else(|| "is empty: expected a caption".to_string())) {
                Ok(caption) => items.push(Item { path, caption }),
                Err(reason) => problems.report(beside.display(), reason),
            }
        }
        let expected = "image files (png, jpg, jpeg, webp), each with a text file of the same name";
        Self::new(dir, items, problems, expected)
    }
}

/// Adds the images in and below `dir`. Links to folders are not followed: they could lead back.
fn list(dir: &Path, paths: &mut Vec<PathBuf>, problems: &mut Problems) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            if let Err(e) = list(&path, paths, problems) {
                problems.report(path.display(), e);
            }
            continue;
        }
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        if EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known)) {
            paths.push(path);
        }
    }
    Ok(())
}
