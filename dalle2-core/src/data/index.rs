//! An index file with one image and its caption per line.

use std::{
    fs,
    path::{Component, Path},
};

use burn::data::dataset::{Dataset, DatasetError};
use serde::Deserialize;

use super::{
    CaptionedImage, Problem,
    items::{Item, Items, Problems, caption},
};
use crate::{Error, Result};

/// Images named by a JSON-lines file: `{"image": "cats/tom.png", "caption": "a grey cat"}` on every line. Further keys
/// are ignored. Paths are relative to the index and may not leave its folder.
///
/// Items are in the order of the lines. Lines that are damaged or name no file are passed over when the set is opened;
/// where an image cannot be read the next one stands in for it.
#[derive(Debug)]
pub struct JsonLinesDataset {
    items: Items,
}

#[derive(Deserialize)]
struct Line {
    image: String,
    caption: String,
}

impl JsonLinesDataset {
    /// Reads the index.
    ///
    /// # Errors
    /// [`Error::Io`] if the index cannot be read, [`Error::Format`] if not one of its lines can be used.
    pub fn open(index: impl AsRef<Path>) -> Result<Self> {
        let index = index.as_ref();
        let bytes = fs::read(index).map_err(|e| Error::io(index, e))?;
        let dir = index.parent().unwrap_or(Path::new(""));
        let mut problems = Problems::default();
        let mut items = Vec::new();
        for (number, line) in (1..).zip(bytes.split(|&byte| byte == b'\n')) {
            let line = if number == 1 { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) } else { line };
            if line.trim_ascii().is_empty() {
                continue;
            }
            match item(dir, line) {
                Ok(item) => items.push(item),
                Err(reason) => problems.report(format!("{}:{number}", index.display()), reason),
            }
        }
        let expected = r#"lines like {"image": "cats/tom.png", "caption": "a grey cat"}"#;
        Ok(Self { items: Items::new(index, items, problems, expected)? })
    }

    /// The items that were passed over so far, when the set was opened and since.
    pub fn problems(&self) -> Vec<Problem> {
        self.items.problems()
    }

    /// All captions, in order.
    pub fn captions(&self) -> impl Iterator<Item = &str> {
        self.items.captions()
    }
}

impl Dataset<CaptionedImage> for JsonLinesDataset {
    fn get(&self, index: usize) -> Result<CaptionedImage, DatasetError> {
        self.items.get(index)
    }

    fn len(&self) -> usize {
        self.items.len()
    }
}

fn item(dir: &Path, line: &[u8]) -> Result<Item, String> {
    let line: Line = serde_json::from_slice(line).map_err(|e| format!("not an entry: {e}"))?;
    let inside = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if !Path::new(&line.image).components().all(inside) {
        return Err(format!(
            "the path `{}` leads out of the index's folder: it must be relative, without `..`",
            line.image
        ));
    }
    let path = dir.join(&line.image);
    if !path.is_file() {
        return Err(format!("the image {} does not exist", path.display()));
    }
    let caption = caption(&line.caption).ok_or("the caption is empty")?;
    Ok(Item { path, caption })
}
