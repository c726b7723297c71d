//! Captioned images as the recipes read them.

use std::sync::{Arc, Mutex, PoisonError};

use dalle2_core::image::{RgbImage, fit_square};
use dalle2_core::{ConfigError, Error, Result};

use crate::data::{CaptionedImage, DataSpec, DataSplit, Decoders, Mixture, Problem, SplitKey, caption_class};

/// A captioned square image.
#[derive(Debug, Clone)]
pub struct TrainItem {
    /// The caption.
    pub caption: String,
    /// The image, square.
    pub image: RgbImage,
    /// Items of one class show the same concept: CLIP does not treat them as negatives of each other.
    pub class: u64,
}

/// A data set of captioned images for training.
///
/// [`ImageData`] reads folders, index files and shards. A program implements the trait for data of another form.
pub trait TrainData: Send + Sync {
    /// Returns the number of items.
    fn len(&self) -> usize;

    /// Whether there are no items.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the `count` items of a training step at `size` pixels: a pure function of the arguments.
    ///
    /// # Errors
    /// If no item can be read.
    fn batch(&self, seed: u64, step: u64, count: usize, size: usize) -> Result<Vec<TrainItem>>;

    /// Returns an item with its plain caption, at `size` pixels.
    ///
    /// # Errors
    /// If this item cannot be read.
    fn item(&self, index: usize, size: usize) -> Result<TrainItem>;

    /// Returns texts that contain every word of every caption, for the vocabulary of a small CLIP.
    ///
    /// # Errors
    /// If a caption cannot be read.
    fn words(&self) -> Result<Vec<String>>;

    /// Divides the items by concept: a `share` of the concepts is held out, with all their captions and images.
    ///
    /// # Errors
    /// If the share is not between 0 and 1, or the data set cannot be divided, which is the default.
    fn split(&self, share: f64) -> Result<DataSplit<Arc<dyn TrainData>>> {
        Err(Error::Input(format!("this data set cannot be divided into shares of {share} and the rest")))
    }
}

impl<T: TrainData + ?Sized> TrainData for Arc<T> {
    fn len(&self) -> usize {
        (**self).len()
    }

    fn batch(&self, seed: u64, step: u64, count: usize, size: usize) -> Result<Vec<TrainItem>> {
        (**self).batch(seed, step, count, size)
    }

    fn item(&self, index: usize, size: usize) -> Result<TrainItem> {
        (**self).item(index, size)
    }

    fn words(&self) -> Result<Vec<String>> {
        (**self).words()
    }

    fn split(&self, share: f64) -> Result<DataSplit<Arc<dyn TrainData>>> {
        (**self).split(share)
    }
}

/// Returns at most `limit` readable items, spread evenly over a data set: always the same ones.
///
/// # Errors
/// If no item can be read.
pub fn spread_items(data: &dyn TrainData, size: usize, limit: usize) -> Result<Vec<TrainItem>> {
    let count = data.len().min(limit);
    let mut items = Vec::with_capacity(count);
    let mut first_error = None;
    for i in 0..count {
        let index = i * data.len() / count;
        match data.item(index, size) {
            Ok(item) => items.push(item),
            Err(error) => {
                tracing::warn!(index, %error, "item left out");
                first_error.get_or_insert(error);
            }
        }
    }
    match first_error {
        Some(error) if items.is_empty() => Err(error),
        _ => Ok(items),
    }
}

/// Folders, index files and shards, mixed by weight, and the threads that decode them.
pub struct ImageData {
    /// In the order of the seed that was requested last.
    mixture: Mutex<Arc<Mixture>>,
    decoders: Arc<Decoders>,
}

impl ImageData {
    /// Opens data sets by their [`DataSpec`]s, such as `photos:0.7`. `workers` threads decode images, one per core if
    /// `None`.
    ///
    /// # Errors
    /// If a specification is wrong, a data set cannot be read, or lacks captioned images.
    pub fn open<T: AsRef<str>>(specs: &[T], workers: Option<usize>) -> Result<Self> {
        let specs = specs.iter().map(|text| text.as_ref().parse()).collect::<Result<Vec<DataSpec>, ConfigError>>()?;
        Self::new(Mixture::open(0, &specs)?, workers)
    }

    /// Wraps a mixture. `workers` threads decode images, one per core if `None`.
    ///
    /// # Errors
    /// If the threads cannot be started.
    pub fn new(mixture: Mixture, workers: Option<usize>) -> Result<Self> {
        tracing::info!("{} captioned images; {} items skipped", mixture.len(), mixture.problems().len());
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self::shared(mixture, Arc::new(Decoders::new(workers.unwrap_or_else(cores))?)))
    }

    /// Returns the items that were skipped so far, each with the reason.
    pub fn problems(&self) -> Vec<Problem> {
        self.current().problems()
    }

    fn shared(mixture: Mixture, decoders: Arc<Decoders>) -> Self {
        Self { mixture: Mutex::new(Arc::new(mixture)), decoders }
    }

    /// Divides the items by a key; see [`Mixture::split`].
    ///
    /// # Errors
    /// As [`Mixture::split`].
    pub fn split_by(&self, share: f64, key: SplitKey) -> Result<DataSplit<Self>> {
        let DataSplit { train, held_out } = self.current().split(share, key)?;
        let part = |mixture| Self::shared(mixture, self.decoders.clone());
        Ok(DataSplit { train: part(train), held_out: part(held_out) })
    }

    /// Decodes every item, and returns the captions of those that can be read.
    pub(super) fn readable_captions(&self) -> Vec<Option<String>> {
        let mixture = self.current();
        self.decoders.map(0..mixture.len(), |index| mixture.exact(mixture.nth(index)).ok().map(|item| item.caption))
    }

    fn mixture(&self, seed: u64) -> Result<Arc<Mixture>> {
        let mut mixture = self.current();
        if mixture.seed() != seed {
            mixture = Arc::new(mixture.with_seed(seed)?);
            *self.mixture.lock().unwrap_or_else(PoisonError::into_inner) = mixture.clone();
        }
        Ok(mixture)
    }

    fn current(&self) -> Arc<Mixture> {
        self.mixture.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl TrainData for ImageData {
    fn len(&self) -> usize {
        self.current().len()
    }

    fn batch(&self, seed: u64, step: u64, count: usize, size: usize) -> Result<Vec<TrainItem>> {
        let mixture = self.mixture(seed)?;
        self.decoders.batch(&mixture, step, count, |_, _, image| Ok(train_item(image, size)))
    }

    fn item(&self, index: usize, size: usize) -> Result<TrainItem> {
        let mixture = self.current();
        mixture.exact(mixture.nth(index)).map(|image| train_item(image, size))
    }

    fn words(&self) -> Result<Vec<String>> {
        let mixture = self.current();
        (0..mixture.len()).map(|index| mixture.caption(mixture.nth(index))).collect()
    }

    fn split(&self, share: f64) -> Result<DataSplit<Arc<dyn TrainData>>> {
        let DataSplit { train, held_out } = self.split_by(share, SplitKey::Caption)?;
        Ok(DataSplit { train: Arc::new(train), held_out: Arc::new(held_out) })
    }
}

fn train_item(item: CaptionedImage, size: usize) -> TrainItem {
    let CaptionedImage { caption, image } = item;
    let class = caption_class(&caption);
    TrainItem { image: fit_square(&image, size as u32), class, caption }
}
