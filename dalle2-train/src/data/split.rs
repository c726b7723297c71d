//! Dividing a data set into a part for training and a held-out part, by a stable key of each item.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use burn::data::dataset::{Dataset, DatasetError};
use dalle2_core::text::clean;
use dalle2_core::{ConfigError, Error, Result};

use super::items::{Problems, StandIns};
use super::{CaptionedImage, CaptionedImages, Groups, Mixture, Problem};
use crate::mix_seed;

/// The key that decides the part of an item. Items with equal keys are in one part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SplitKey {
    /// The caption after clean-up: all images of a concept are in one part.
    #[default]
    Caption,
    /// The name of the item: its path, or shard and sample.
    Name,
    /// The pixels of the image: copies of an image are in one part. Every image is decoded once.
    Content,
}

/// Returns the class of a caption: captions that are equal after clean-up have one class.
pub fn caption_class(caption: &str) -> u64 {
    let text = clean(caption).to_lowercase();
    hash(text.split_whitespace().flat_map(|word| word.bytes().chain([0])))
}

/// Hashes bytes: a stable function of the bytes alone.
pub(crate) fn hash(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0, |state, byte| mix_seed(state, 0, byte.into()))
}

/// Selects held-out keys: the `share` of the distinct keys whose hashes are lowest, at least one and not all.
///
/// A key keeps its part when other items are added, except for keys near the boundary.
///
/// # Errors
/// If `share` is not between 0 and 1, or there are fewer than two distinct keys.
pub fn held_out_keys(keys: &[u64], share: f64) -> Result<BTreeSet<u64>, ConfigError> {
    if !(share > 0.0 && share < 1.0) {
        return Err(ConfigError::new("validation", share, "must be a share above 0 and below 1"));
    }
    let distinct: BTreeSet<u64> = keys.iter().copied().collect();
    if distinct.len() < 2 {
        let expected = "needs at least two different captions to divide the data";
        return Err(ConfigError::new("validation", share, expected));
    }
    let count = ((distinct.len() as f64 * share).round() as usize).clamp(1, distinct.len() - 1);
    let mut ranked: Vec<u64> = distinct.into_iter().collect();
    ranked.sort_by_key(|key| mix_seed(*key, 0x0073_706c_6974, 0));
    ranked.truncate(count);
    Ok(ranked.into_iter().collect())
}

/// A data set divided in two.
#[derive(Debug)]
pub struct DataSplit<T> {
    /// For training.
    pub train: T,
    /// Never used in training.
    pub held_out: T,
}

impl Mixture {
    /// Divides the items by a key, over all data sets together. The parts have the weights of this mixture.
    ///
    /// The key decides before any image is read, and an item that cannot be read stays missing from its own part.
    ///
    /// # Errors
    /// If `share` is not between 0 and 1, the data has fewer than two different keys, or a caption cannot be read.
    pub fn split(&self, share: f64, key: SplitKey) -> Result<DataSplit<Self>> {
        let keys = (0..self.len()).map(|number| self.split_key(number, key)).collect::<Result<Vec<_>>>()?;
        let held_out = held_out_keys(&keys, share)?;
        let part = |is_held_out: bool| {
            let belongs = |number: usize| held_out.contains(&keys[number]) == is_held_out;
            self.select((0..self.len()).filter(|number| belongs(*number)))
        };
        Ok(DataSplit { train: part(false)?, held_out: part(true)? })
    }

    fn split_key(&self, number: usize, key: SplitKey) -> Result<u64> {
        let item = self.nth(number);
        match key {
            SplitKey::Caption => Ok(caption_class(&self.caption(item)?)),
            SplitKey::Name => Ok(hash(self.key(item).bytes())),
            // An image that cannot be read has its name as key.
            SplitKey::Content => Ok(match self.exact(item) {
                Ok(item) => hash(item.image.into_raw()),
                Err(_) => hash(self.key(item).bytes()),
            }),
        }
    }
}

/// Some items of a data set, as a data set.
pub(super) struct SelectedImages {
    inner: Arc<dyn CaptionedImages>,
    indices: Vec<usize>,
    stand_ins: StandIns,
}

impl SelectedImages {
    /// Selects the items at `indices`, which ascend.
    pub(super) fn new(inner: Arc<dyn CaptionedImages>, indices: Vec<usize>) -> Self {
        let stand_ins = StandIns::new(&PathBuf::from("a part of a data set"), Problems::default());
        Self { inner, indices, stand_ins }
    }
}

impl Dataset<CaptionedImage> for SelectedImages {
    fn get(&self, index: usize) -> Result<CaptionedImage, DatasetError> {
        self.stand_ins.get(index, self.indices.len(), |i| self.key(i), |i| self.exact(i))
    }

    fn len(&self) -> usize {
        self.indices.len()
    }
}

impl CaptionedImages for SelectedImages {
    fn caption(&self, index: usize) -> Result<String> {
        self.inner.caption(self.indices[index])
    }

    fn key(&self, index: usize) -> String {
        self.inner.key(self.indices[index])
    }

    fn problems(&self) -> Vec<Problem> {
        self.inner.problems()
    }

    fn groups(&self) -> Option<Groups> {
        let groups = self.inner.groups()?;
        let mut indices = self.indices.iter().peekable();
        let mut end = 0;
        let sizes = groups.sizes.iter().map(|size| {
            end += size;
            std::iter::from_fn(|| indices.next_if(|index| **index < end)).count()
        });
        Some(Groups { sizes: sizes.collect(), window: groups.window })
    }

    fn exact(&self, index: usize) -> Result<CaptionedImage> {
        self.inner.exact(self.indices[index])
    }
}

impl Mixture {
    /// Selects items by their numbers, which ascend. Data sets without a selected item are left out.
    fn select(&self, numbers: impl Iterator<Item = usize>) -> Result<Self> {
        let mut indices = vec![Vec::new(); self.sets().count()];
        for number in numbers {
            let item = self.nth(number);
            indices[item.set].push(item.index);
        }
        let sets = self.sets().zip(indices).filter(|(_, indices)| !indices.is_empty());
        let sets = sets.map(|((set, share), indices)| {
            (Arc::new(SelectedImages::new(set.clone(), indices)) as Arc<dyn CaptionedImages>, share)
        });
        Self::new(self.seed(), sets.collect()).map_err(|e| Error::Input(format!("a part of the data: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::ImageFiles;
    use dalle2_core::image::{RgbImage, save_png};

    fn mixture(dir: &std::path::Path, count: u8, captions: u8) -> Mixture {
        for i in 0..count {
            let path = dir.join(format!("{i:02}.png"));
            save_png(&RgbImage::from_pixel(3, 3, ::image::Rgb([i; 3])), &path).unwrap();
            std::fs::write(path.with_extension("txt"), format!("number {}", i % captions)).unwrap();
        }
        Mixture::of(3, Arc::new(ImageFiles::folder(dir).unwrap())).unwrap()
    }

    fn captions(mixture: &Mixture) -> BTreeSet<String> {
        (0..mixture.len()).map(|number| mixture.caption(mixture.nth(number)).unwrap()).collect()
    }

    #[test]
    fn captions_equal_after_clean_up_share_a_class() {
        assert_eq!(caption_class(" A red  apple"), caption_class("a red apple"));
        assert_eq!(caption_class("caf&eacute;"), caption_class("CAFÉ"));
        assert_ne!(caption_class("red apple"), caption_class("redapple"));
        assert_ne!(caption_class("red apple"), caption_class("apple red"));
    }

    #[test]
    fn all_images_of_a_caption_are_in_one_part() {
        let dir = tempfile::tempdir().unwrap();
        let data = mixture(dir.path(), 40, 10);
        let DataSplit { train, held_out } = data.split(0.2, SplitKey::Caption).unwrap();
        assert_eq!((train.len(), held_out.len()), (32, 8));
        assert!(captions(&train).is_disjoint(&captions(&held_out)));
        assert_eq!(captions(&data.split(0.2, SplitKey::Caption).unwrap().held_out), captions(&held_out));
        assert_eq!(data.split(0.001, SplitKey::Name).unwrap().held_out.len(), 1, "at least one");
        assert_eq!(data.split(0.999, SplitKey::Content).unwrap().train.len(), 1, "not all");
        for share in [0.0, 1.0, f64::NAN, -1.0] {
            assert!(data.split(share, SplitKey::Name).unwrap_err().to_string().contains("above 0 and below 1"));
        }
    }

    #[test]
    fn nothing_replaces_a_broken_item_across_parts() {
        let dir = tempfile::tempdir().unwrap();
        let data = mixture(dir.path(), 10, 10);
        let held_out = captions(&data.split(0.3, SplitKey::Caption).unwrap().held_out);
        for i in [0, 1, 5, 9] {
            std::fs::write(dir.path().join(format!("{i:02}.png")), b"broken").unwrap();
        }
        let data = Mixture::of(3, Arc::new(ImageFiles::folder(dir.path()).unwrap())).unwrap();
        let parts = data.split(0.3, SplitKey::Caption).unwrap();
        assert_eq!(captions(&parts.held_out), held_out, "the parts do not depend on which images can be read");
        for (part, is_held_out) in [(&parts.train, false), (&parts.held_out, true)] {
            for number in 0..part.len() {
                let Ok(item) = part.get(part.nth(number)) else { continue };
                assert_eq!(held_out.contains(&item.caption), is_held_out, "{}", item.caption);
            }
        }
    }
}
