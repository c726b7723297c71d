//! What the data sets share: the list of items, and what is done about the ones that cannot be read.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use burn::data::dataset::DatasetError;

use ::image::RgbImage;

use crate::{Error, Result, image};

/// An image and what it shows.
#[derive(Debug, Clone)]
pub struct CaptionedImage {
    /// The caption, trimmed and not empty.
    pub caption: String,
    /// The image, of any size.
    pub image: RgbImage,
}

/// An item that was passed over, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The image, or the caption file or index line (`index.jsonl:3`) at fault.
    pub item: String,
    /// What is wrong with it.
    pub reason: String,
}

/// An image on disk with its caption.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) path: PathBuf,
    pub(super) caption: String,
}

/// Collects problems while a data set is opened: each is logged once and kept.
#[derive(Debug, Default)]
pub(super) struct Problems(BTreeMap<String, String>);

impl Problems {
    pub(super) fn report(&mut self, item: impl ToString, reason: impl ToString) {
        let (item, reason) = (item.to_string(), reason.to_string());
        if !self.0.contains_key(&item) {
            tracing::warn!(%item, %reason, "passed over");
            self.0.insert(item, reason);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// A list of items, never empty, and the problems met so far.
#[derive(Debug)]
pub(super) struct Items {
    items: Vec<Item>,
    problems: Mutex<Problems>,
}

impl Items {
    /// # Errors
    /// [`Error::Format`] at `source` if no item is left.
    pub(super) fn new(source: &Path, items: Vec<Item>, problems: Problems, expected: &str) -> Result<Self> {
        if items.is_empty() {
            let passed_over = match problems.0.iter().next() {
                None => String::new(),
                Some((item, reason)) => format!("; {} passed over, the first {item}: {reason}", problems.len()),
            };
            return Err(Error::format(source, format!("no captioned image here: expected {expected}{passed_over}")));
        }
        Ok(Self { items, problems: Mutex::new(problems) })
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn captions(&self) -> impl Iterator<Item = &str> {
        self.items.iter().map(|item| item.caption.as_str())
    }

    pub(super) fn problems(&self) -> Vec<Problem> {
        let problems = self.lock();
        problems.0.iter().map(|(item, reason)| Problem { item: item.clone(), reason: reason.clone() }).collect()
    }

    /// The item at `index`, or the next one in order that can be read.
    ///
    /// # Errors
    /// When not one image of the set can be read.
    pub(super) fn get(&self, index: usize) -> Result<CaptionedImage, DatasetError> {
        let len = self.items.len();
        assert!(index < len, "index {index} is out of range: the data set has {len} items");
        for item in self.items[index..].iter().chain(&self.items[..index]) {
            match image::open(&item.path) {
                Ok(image) => return Ok(CaptionedImage { caption: item.caption.clone(), image }),
                Err(error) => self.lock().report(item.path.display(), reason(&error)),
            }
        }
        Err(DatasetError::custom(format!("none of the {len} images of the data set can be read any more")))
    }

    /// A panic elsewhere cannot leave the list half written, so a poisoned lock is used as it is.
    fn lock(&self) -> MutexGuard<'_, Problems> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The message of an error without the path, which the problem already names.
pub(super) fn reason(error: &Error) -> String {
    match error {
        Error::Io { source, .. } => source.to_string(),
        Error::Image { source, .. } => source.to_string(),
        Error::Format { message, .. } => message.clone(),
        other => other.to_string(),
    }
}

/// A caption ready for use: its first line that is not blank, trimmed.
pub(super) fn caption(text: &str) -> Option<String> {
    text.trim_start_matches('\u{feff}').lines().map(str::trim).find(|line| !line.is_empty()).map(String::from)
}
