//! One file per image, with captions.

use std::path::{Path, PathBuf};

use burn::data::dataset::{Dataset, DatasetError};

use super::items::{Problems, StandIns};
use super::{CaptionedImage, CaptionedImages, Problem};
use dalle2_core::{Result, image};

/// An image on disk with its caption.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) path: PathBuf,
    pub(super) caption: String,
}

/// One file per image: [a folder](Self::folder) with a text file beside each image, or the files that
/// [an index](Self::index) names.
///
/// Captions are read when the set is opened, images on demand.
#[derive(Debug)]
pub struct ImageFiles {
    /// Directory below which names are relative.
    root: PathBuf,
    items: Vec<Item>,
    stand_ins: StandIns,
}

impl ImageFiles {
    /// # Errors
    /// [`Error::Format`](dalle2_core::Error::Format) at `source` if no item is left.
    pub(super) fn new(source: &Path, items: Vec<Item>, problems: Problems, expected: &str) -> Result<Self> {
        if items.is_empty() {
            return Err(problems.nothing_left(source, expected));
        }
        let root = if source.is_dir() { source } else { source.parent().unwrap_or(Path::new("")) };
        Ok(Self { root: root.to_path_buf(), items, stand_ins: StandIns::new(source, problems) })
    }

    /// All captions, in order.
    pub fn captions(&self) -> impl Iterator<Item = &str> {
        self.items.iter().map(|item| item.caption.as_str())
    }

    fn name(&self, index: usize) -> String {
        self.items[index].path.display().to_string()
    }

    fn load(&self, index: usize) -> Result<CaptionedImage> {
        let Item { path, caption } = &self.items[index];
        Ok(CaptionedImage { caption: caption.clone(), image: image::open(path)? })
    }
}

impl Dataset<CaptionedImage> for ImageFiles {
    fn get(&self, index: usize) -> Result<CaptionedImage, DatasetError> {
        self.stand_ins.get(index, self.items.len(), |i| self.name(i), |i| self.load(i))
    }

    fn len(&self) -> usize {
        self.items.len()
    }
}

impl CaptionedImages for ImageFiles {
    fn caption(&self, index: usize) -> Result<String> {
        Ok(self.items[index].caption.clone())
    }

    fn problems(&self) -> Vec<Problem> {
        self.stand_ins.problems()
    }

    fn key(&self, index: usize) -> String {
        let path = &self.items[index].path;
        path.strip_prefix(&self.root).unwrap_or(path).display().to_string()
    }

    fn exact(&self, index: usize) -> Result<CaptionedImage> {
        self.stand_ins.check(index)?;
        self.load(index).inspect_err(|error| self.stand_ins.note(index, self.name(index), error))
    }
}
