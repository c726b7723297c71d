//! Items of data sets, and the handling of items that cannot be read.

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

/// An image with its caption.
#[derive(Debug, Clone)]
pub struct CaptionedImage {
    /// The caption, trimmed and not empty.
    pub caption: String,
    /// The image, of any size.
    pub image: RgbImage,
}

/// A data set of captioned images in any storage. [`Dataset::get`] replaces an item that cannot be read by the next one;
/// [`CaptionedImages::exact`] does not.
pub trait CaptionedImages: Dataset<CaptionedImage> {
    /// The caption of an item, without its image.
    ///
    /// # Errors
    /// When it can no longer be read.
    fn caption(&self, index: usize) -> Result<String>;

    /// The items that were passed over so far, when the set was opened and since, each once.
    fn problems(&self) -> Vec<Problem>;

    /// Returns the name of an item, which does not depend on the other items: its path, or its shard and sample.
    fn key(&self, index: usize) -> String {
        index.to_string()
    }

    /// Returns the sizes of groups of neighbouring items that are read together, such as shards.
    fn groups(&self) -> Option<Groups> {
        None
    }

    /// Returns the order in which training visits the items: a different one in each epoch.
    ///
    /// # Errors
    /// If the set is empty.
    fn order(&self, seed: u64) -> Result<Order> {
        match self.groups() {
            Some(Groups { sizes, window }) => Ok(Order::in_windows(seed, sizes, window)?),
            None => Ok(Order::new(seed, self.len())?),
        }
    }

    /// Decodes an item; no other item replaces it.
    ///
    /// # Errors
    /// If it cannot be read. The problem is listed in [`CaptionedImages::problems`].
    fn exact(&self, index: usize) -> Result<CaptionedImage>;
}

/// Groups of neighbouring items, such as shards, and the number of items that are shuffled together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups {
    /// Items of each group, in the order of the items.
    pub sizes: Vec<usize>,
    /// Items that are shuffled together, see [`Order::in_windows`].
    pub window: usize,
}

/// A skipped item, with the reason.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// The image, the caption file, the index line (`index.jsonl:3`) or the sample (`00.tar:cat-17`) at fault.
    pub item: String,
    /// The fault.
    pub reason: String,
}

/// The problems so far, in order; each item is logged once.
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

    /// Returns the error for a set without a usable item.
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

/// Replaces items that cannot be read, and remembers them.
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

    /// Loads the item at `index`, or the next one of the `len` items that can be loaded. `load` runs without a lock, so
    /// several threads decode in parallel. `name` names the item in the report of a fault.
    ///
    /// # Errors
    /// If no item can be loaded.
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

    /// Fails if an item is known to be unreadable.
    ///
    /// # Errors
    /// If reading it failed before.
    pub(super) fn check(&self, index: usize) -> Result<()> {
        if self.lock().broken.contains(&index) {
            return Err(Error::format(&self.source, format!("item {index} cannot be read, as reported before")));
        }
        Ok(())
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
