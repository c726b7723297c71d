//! Captioned emoji for training: every image is a pure function of a seed and an index.

use std::sync::Arc;

use burn::data::dataset::{Dataset, DatasetError};
use dalle2_core::{ConfigError, Error, Result};
use dalle2_train::data::CaptionedImage;
use image::RgbImage;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::{CaptionOptions, EmojiStore, Scene};

/// One captioned emoji at every size asked for.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Position in the catalogue.
    pub emoji_index: usize,
    /// The caption.
    pub caption: String,
    /// The same scene at each of the data set's sizes, in their order.
    pub images: Vec<RgbImage>,
}

/// Some emoji of a store with varied captions.
#[derive(Clone)]
pub struct EmojiDataset {
    store: Arc<EmojiStore>,
    items: Vec<usize>,
    sizes: Vec<u32>,
    captions: CaptionOptions,
    seed: u64,
}

impl EmojiDataset {
    /// The emoji `items` (see [`Subset::select`](crate::Subset::select)) at `sizes`, with seed 0 and captions as
    /// [`CaptionOptions::default`] has them.
    ///
    /// # Errors
    /// When there is no item or no size, an item is not in the catalogue, or a size not in `1..=4096`.
    pub fn new(store: Arc<EmojiStore>, items: Vec<usize>, sizes: &[u32]) -> Result<Self> {
        if items.is_empty() {
            return Err(ConfigError::new("items", "[]", "at least one emoji").into());
        }
        if sizes.is_empty() {
            return Err(ConfigError::new("sizes", "[]", "at least one size").into());
        }
        items.iter().try_for_each(|&item| store.emoji(item).map(drop))?;
        sizes.iter().try_for_each(|&size| crate::render::check_size(size))?;
        Ok(Self { store, items, sizes: sizes.to_vec(), captions: CaptionOptions::default(), seed: 0 })
    }

    /// Sets how captions vary.
    ///
    /// # Errors
    /// When a value is no probability.
    pub fn with_captions(mut self, captions: CaptionOptions) -> Result<Self> {
        captions.validate()?;
        self.captions = captions;
        Ok(self)
    }

    /// Sets the seed that [`Dataset::get`] uses.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The store behind it.
    pub fn store(&self) -> &Arc<EmojiStore> {
        &self.store
    }

    /// The emoji in use, as positions in the catalogue.
    pub fn items(&self) -> &[usize] {
        &self.items
    }

    /// Item `index` with the variation that `seed` and `index` give. Indices may exceed the length: `index` shows item
    /// `index % len`, each time in another variation.
    ///
    /// # Errors
    /// When a rendering fails.
    pub fn sample(&self, seed: u64, index: u64) -> Result<Sample> {
        let item = self.items[(index % self.items.len() as u64) as usize];
        self.vary(item, seed, index)
    }

    /// The `size` samples of training step `step`: passes over all items, each pass in its own random order, without
    /// a gap between passes. A pure function of `(seed, step, size)`, so that a resumed run sees what it would have seen.
    ///
    /// # Errors
    /// When a rendering fails.
    pub fn batch(&self, seed: u64, step: u64, size: usize) -> Result<Vec<Sample>> {
        let len = self.items.len() as u64;
        let first = step * size as u64;
        let mut order: (Option<u64>, Vec<usize>) = (None, Vec::new());
        (first..first + size as u64)
            .map(|position| {
                let pass = position / len;
                if order.0 != Some(pass) {
                    order = (Some(pass), self.order(seed, pass));
                }
                self.vary(order.1[(position % len) as usize], seed, position)
            })
            .collect()
    }

    /// The items in the order of one pass.
    fn order(&self, seed: u64, pass: u64) -> Vec<usize> {
        let mut rng = ChaCha8Rng::seed_from_u64(!seed); // another key than the variations have
        rng.set_stream(pass);
        let mut items = self.items.clone();
        items.shuffle(&mut rng);
        items
    }

    fn vary(&self, emoji_index: usize, seed: u64, stream: u64) -> Result<Sample> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        let (caption, scene): (String, Scene) = self.captions.sample(&self.store.emoji(emoji_index)?.name, &mut rng);
        let images =
            self.sizes.iter().map(|&size| self.store.compose(emoji_index, size, &scene)).collect::<Result<_>>()?;
        Ok(Sample { emoji_index, caption, images })
    }
}

/// Items in the order of the catalogue, at the first size, in the variation of the data set's own seed.
impl Dataset<CaptionedImage> for EmojiDataset {
    fn get(&self, index: usize) -> Result<CaptionedImage, DatasetError> {
        assert!(index < self.items.len(), "index {index} of a data set of {}", self.items.len());
        let Sample { caption, images, .. } = self.sample(self.seed, index as u64).map_err(DatasetError::new)?;
        let image = images.into_iter().next();
        let image = image.ok_or_else(|| DatasetError::new(Error::Input("the data set lacks a size".into())))?;
        Ok(CaptionedImage { caption, image })
    }

    fn len(&self) -> usize {
        self.items.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::testing::store;
    use crate::{Split, Subset};

    const VARIED: CaptionOptions = CaptionOptions { backgrounds: 0.5, placement: 0.5, scale: 0.5, wording: 0.5 };

    fn dataset(sizes: &[u32]) -> EmojiDataset {
        let store = store();
        let items = Subset::Tiny.select(store.catalogue(), Split::Seen).unwrap();
        EmojiDataset::new(store, items, sizes).unwrap().with_captions(VARIED).unwrap()
    }

    fn raw(samples: &[Sample]) -> Vec<(usize, String, Vec<u8>)> {
        samples.iter().map(|s| (s.emoji_index, s.caption.clone(), s.images[0].as_raw().clone())).collect()
    }

    #[test]
    fn a_step_is_a_pure_function_of_seed_and_step() {
        let first = dataset(&[32]);
        let expected = raw(&first.batch(7, 30, 5).unwrap());
        first.batch(7, 0, 5).unwrap();
        assert_eq!(raw(&first.batch(7, 30, 5).unwrap()), expected);
        assert_eq!(raw(&dataset(&[32]).batch(7, 30, 5).unwrap()), expected, "in a new process");
        assert_ne!(raw(&first.batch(8, 30, 5).unwrap()), expected);
        assert_ne!(raw(&first.batch(7, 31, 5).unwrap()), expected);
    }

    #[test]
    fn every_pass_shows_every_item_once_in_its_own_order() {
        let dataset = dataset(&[32]);
        // 48 items: steps of 7 run across the borders between passes.
        let shown: Vec<usize> =
            (0..14).flat_map(|step| dataset.batch(3, step, 7).unwrap()).map(|s| s.emoji_index).collect();
        let (first, second) = (&shown[..48], &shown[48..96]);
        let all: BTreeSet<usize> = dataset.items().iter().copied().collect();
        assert_eq!(first.iter().copied().collect::<BTreeSet<_>>(), all);
        assert_eq!(second.iter().copied().collect::<BTreeSet<_>>(), all);
        assert_ne!(first, second);
    }

    #[test]
    fn the_same_scene_is_rendered_at_every_size() {
        let dataset = dataset(&[32, 64]);
        for index in 0..40 {
            let sample = dataset.sample(5, index).unwrap();
            let [small, large] = sample.images.as_slice() else { panic!("two sizes") };
            assert_eq!((small.width(), large.width()), (32, 64));
            let halved = image::imageops::thumbnail(large, 32, 32);
            let error: f64 = small
                .as_raw()
                .iter()
                .zip(halved.as_raw())
                .map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs())
                .sum::<f64>()
                / (32.0 * 32.0 * 3.0);
            assert!(error < 4.0, "`{}`: mean difference {error}", sample.caption);
        }
    }

    #[test]
    fn variations_change_from_pass_to_pass() {
        let dataset = dataset(&[32]);
        let captions: BTreeSet<String> = (0..20).map(|pass| dataset.sample(1, 48 * pass).unwrap().caption).collect();
        assert!(captions.len() > 10, "{captions:?}");
        assert!(captions.iter().all(|c| c.contains(&dataset.store().catalogue()[dataset.items()[0]].name)));
    }

    #[test]
    fn it_is_a_burn_dataset() {
        let dataset = dataset(&[64, 32]).with_seed(4);
        let sample = dataset.sample(4, 2).unwrap();
        let item: CaptionedImage = Dataset::get(&dataset, 2).unwrap();
        assert_eq!((Dataset::len(&dataset), item.image.dimensions()), (48, (64, 64)));
        assert_eq!((item.caption, &item.image), (sample.caption, &sample.images[0]));
    }

    #[test]
    fn impossible_data_sets_are_refused() {
        let message = |items, sizes: &[u32]| EmojiDataset::new(store(), items, sizes).err().unwrap().to_string();
        assert!(message(vec![], &[32]).contains("`items`"));
        assert!(message(vec![0], &[]).contains("`sizes`"));
        assert!(message(vec![9999], &[32]).contains("9999"));
        assert!(message(vec![0], &[0]).contains("`size` = 0"));
        assert!(dataset(&[32]).with_captions(CaptionOptions { scale: 2.0, ..VARIED }).is_err());
    }
}
