//! Images in files of their own, with their captions.

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

/// Images in files of their own: [a folder](Self::folder) with a text file beside each, or those that
/// [an index](Self::index) names.
///
/// Captions are read when the set is opened, images when they are asked for; where one cannot be read the next one
/// stands in for it.
#[derive(Debug)]
pub struct ImageFiles {
    items: Vec<Item>,
    stand_ins: StandIns,
}

impl ImageFiles {
    /// # Errors
    /// [`Error::Format`](dalle2_core::Error::Format) at `source` if no item is left.
    pub(super) fn new(source: &Path, items: Vec<Item>, problems: Problems, expected: &str) -> Result<Self> {
        match items.is_empty() {
            true => Err(problems.nothing_left(source, expected)),
            false => Ok(Self { items, stand_ins: StandIns::new(source, problems) }),
        }
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

    fn exact(&self, index: usize) -> Result<CaptionedImage> {
        self.load(index).inspect_err(|error| self.stand_ins.note(index, self.name(index), error))
    }
}
