//! What the data sets share: items, and what is done about the ones that cannot be read.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use burn::data::dataset::{Dataset, DatasetError};
use serde::{Deserialize, Serialize};

use ::image::RgbImage;

use super::Order;
use dalle2_core::{Error, Result};

/// An image and what it shows.
#[derive(Debug, Clone)]
pub struct CaptionedImage {
    /// The caption, trimmed and not empty.
    pub caption: String,
    /// The image, of any size.
    pub image: RgbImage,
}

/// A data set of captioned images, whatever it is stored in. What cannot be read is stood in for by the next item, so
/// [`Dataset::get`] only fails when nothing can be read any more.
pub trait CaptionedImages: Dataset<CaptionedImage> {
    /// The caption of an item, without its image.
    ///
    /// # Errors
    /// When it can no longer be read.
    fn caption(&self, index: usize) -> Result<String>;

    /// The items that were passed over so far, when the set was opened and since, each once.
    fn problems(&self) -> Vec<Problem>;

    /// The order in which training goes through the set: another one in every epoch, by default without any structure.
    fn order(&self, seed: u64) -> Result<Order> {
        Ok(Order::new(seed, self.len())?)
    }

    /// Decodes an item that must be readable; nothing stands in for it.
    ///
    /// # Errors
    /// When it cannot be read. The problem is noted.
    fn exact(&self, index: usize) -> Result<CaptionedImage>;
}

/// An item that was passed over, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// The image, the caption file, the index line (`index.jsonl:3`) or the sample (`00.tar:cat-17`) at fault.
    pub item: String,
    /// What is wrong with it.
    pub reason: String,
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

    /// The error for a set of which nothing can be used.
    pub(super) fn nothing_left(&self, source: &Path, expected: &str) -> Error {
        let passed_over = match self.list.first() {
            None => String::new(),
            Some(Problem { item, reason }) => {
                format!("; {} passed over, the first {item}: {reason}", self.list.len())
            }
        };
        Error::format(source, format!("no captioned image here: expected {expected}{passed_over}"))
    }
}

/// Finds an item that can be read, and remembers which ones cannot.
#[derive(Debug)]
pub(super) struct StandIns {
    source: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    problems: Problems,
    broken: BTreeSet<usize>,
}

impl StandIns {
    pub(super) fn new(source: &Path, problems: Problems) -> Self {
        let state = State { problems, broken: BTreeSet::new() };
        Self { source: source.to_path_buf(), state: Mutex::new(state) }
    }

    pub(super) fn problems(&self) -> Vec<Problem> {
        self.lock().problems.list.clone()
    }

    /// What `load` gives for the item at `index`, or for the next one of the `len` items in order that it can load.
    /// `load` runs without a lock, so several threads decode at once. `name` says what is at fault when it fails.
    ///
    /// # Errors
    /// When not one item can be loaded.
    pub(super) fn get<T>(
        &self,
        index: usize,
        len: usize,
        name: impl Fn(usize) -> String,
        load: impl Fn(usize) -> Result<T>,
    ) -> Result<T, DatasetError> {
        assert!(index < len, "index {index} is out of range: the data set has {len} items");
        for i in (index..len).chain(0..index) {
            if self.lock().broken.contains(&i) {
                continue;
            }
            match load(i) {
                Ok(item) => return Ok(item),
                Err(error) => self.note(i, name(i), &error),
            }
        }
        let message = format!("not one of the {len} images can be read any more");
        Err(DatasetError::new(Error::format(&self.source, message)))
    }

    /// Remembers that an item cannot be used.
    pub(super) fn note(&self, index: usize, name: String, error: &Error) {
        let mut state = self.lock();
        state.broken.insert(index);
        state.problems.report(name, reason(error));
    }

    /// A panic elsewhere cannot leave the state half written, so a poisoned lock is used as it is.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The message of an error without the path, which the problem already names.
pub(super) fn reason(error: &Error) -> String {
    match error {
        Error::Io { source, .. } => source.to_string(),
        Error::Image { source, .. } => source.to_string(),
        Error::Format { message, .. } | Error::ImageFile { message, .. } => message.clone(),
        other => other.to_string(),
    }
}

/// A caption ready for use: its first line that is not blank, trimmed.
pub(super) fn caption(text: &str) -> Option<String> {
    text.trim_start_matches('\u{feff}').lines().map(str::trim).find(|line| !line.is_empty()).map(String::from)
}
