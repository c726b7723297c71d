//! What the data sets share: the list of items, and what is done about the ones that cannot be read.

use std::{
    collections::BTreeSet,
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

/// The problems met so far, in the order in which they were met: each item is logged once and kept.
#[derive(Debug, Default)]
pub(super) struct Problems {
    list: Vec<Problem>,
    known: BTreeSet<String>,
}

impl Problems {
    pub(super) fn report(&mut self, item: impl ToString, reason: impl ToString) {
        let (item, reason) = (item.to_string(), reason.to_string());
        if self.known.insert(item.clone()) {
            tracing::warn!(%item, %reason, "passed over");
            self.list.push(Problem { item, reason });
        }
    }
}

/// A list of items, never empty, and the problems met so far.
#[derive(Debug)]
pub(super) struct Items {
    source: PathBuf,
    items: Vec<Item>,
    problems: Mutex<Problems>,
}

impl Items {
    /// # Errors
    /// [`Error::Format`] at `source` if no item is left.
    pub(super) fn new(source: &Path, items: Vec<Item>, problems: Problems, expected: &str) -> Result<Self> {
        if items.is_empty() {
            let passed_over = match problems.list.first() {
                None => String::new(),
                Some(Problem { item, reason }) => {
                    format!("; {} passed over, the first {item}: {reason}", problems.list.len())
                }
            };
            return Err(Error::format(source, format!("no captioned image here: expected {expected}{passed_over}")));
        }
        Ok(Self { source: source.to_path_buf(), items, problems: Mutex::new(problems) })
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn captions(&self) -> impl Iterator<Item = &str> {
        self.items.iter().map(|item| item.caption.as_str())
    }

    pub(super) fn problems(&self) -> Vec<Problem> {
        self.lock().list.clone()
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
        let message = format!("not one of the {len} images can be read any more");
        Err(DatasetError::new(Error::format(&self.source, message)))
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
