//! An index file that names one image and its caption in every row: JSON lines, CSV or Parquet.

mod csv;
mod json_lines;
#[cfg(feature = "parquet")]
mod parquet;

use std::path::{Component, Path};

use super::files::{ImageFiles, Item};
use super::items::{Problems, caption};
use dalle2_core::{Error, Result};

/// Names of the columns (or keys) of an index that hold the image's path and its caption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns {
    /// The path of the image.
    pub image: String,
    /// The caption.
    pub caption: String,
}

impl Default for Columns {
    /// `image` and `caption`.
    fn default() -> Self {
        Self { image: "image".into(), caption: "caption".into() }
    }
}

/// A row of an index: the image's path and its caption, or its fault.
type Row = std::result::Result<(String, String), String>;

impl ImageFiles {
    /// Images that an index names, one in every row, in the order of the rows. The form follows from the file's name:
    ///
    /// | name ends in | form |
    /// |---|---|
    /// | `.csv`, `.tsv` | a header with the names of the columns, fields separated by commas or tabs, quotes as in RFC 4180 |
    /// | `.parquet` | text columns (feature `parquet`) |
    /// | anything else | JSON lines: `{"image": "cats/tom.png", "caption": "a grey cat"}` |
    ///
    /// Further columns are ignored. Paths are relative to the index and may not leave its folder. Rows that are damaged
    /// or name no file are passed over and reported with the number of their line or row.
    ///
    /// # Errors
    /// [`Error::Io`] if the index cannot be read, [`Error::Format`] if a column is missing or not one row can be used.
    pub fn index(path: impl AsRef<Path>, columns: &Columns) -> Result<Self> {
        let path = path.as_ref();
        let mut list =
            List { dir: path.parent().unwrap_or(Path::new("")), path, items: vec![], problems: <_>::default() };
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
        let expected = match extension.as_str() {
            "csv" => csv::read(path, columns, b',', &mut list)?,
            "tsv" => csv::read(path, columns, b'\t', &mut list)?,
            "parquet" => parquet_rows(path, columns, &mut list)?,
            _ => json_lines::read(path, columns, &mut list)?,
        };
        Self::new(path, list.items, list.problems, &expected)
    }
}

#[cfg(feature = "parquet")]
use parquet::read as parquet_rows;

#[cfg(not(feature = "parquet"))]
fn parquet_rows(path: &Path, _: &Columns, _: &mut List<'_>) -> Result<String> {
    Err(Error::format(path, "is a Parquet file, which this build cannot read: the feature `parquet` is off"))
}

/// The items that an index gives.
struct List<'a> {
    path: &'a Path,
    dir: &'a Path,
    items: Vec<Item>,
    problems: Problems,
}

impl List<'_> {
    /// Takes the row of this number.
    fn add(&mut self, number: u64, row: Row) {
        match row.and_then(|(image, text)| item(self.dir, &image, &text)) {
            Ok(item) => self.items.push(item),
            Err(reason) => self.problems.report(format!("{}:{number}", self.path.display()), reason),
        }
    }
}

fn item(dir: &Path, image: &str, text: &str) -> Result<Item, String> {
    let inside = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if !Path::new(image).components().all(inside) {
        return Err(format!("the path `{image}` leads out of the index's folder: it must be relative, without `..`"));
    }
    let path = dir.join(image);
    if !path.is_file() {
        return Err(format!("the image {} does not exist", path.display()));
    }
    let caption = caption(text).ok_or("the caption is empty")?;
    Ok(Item { path, caption })
}

/// Returns the positions of the two columns in a file.
fn places<'a>(path: &Path, columns: &Columns, found: impl Iterator<Item = &'a str> + Clone) -> Result<(usize, usize)> {
    let place = |name: &str| {
        found.clone().position(|column| column == name).ok_or_else(|| {
            let names: Vec<&str> = found.clone().collect();
            Error::format(path, format!("lacks a column `{name}`: its columns are {}", names.join(", ")))
        })
    };
    Ok((place(&columns.image)?, place(&columns.caption)?))
}
