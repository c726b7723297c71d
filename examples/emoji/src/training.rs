//! The emoji as training data of the recipes.

use std::path::Path;
use std::sync::Arc;

use dalle2_core::{ConfigError, Result};
use dalle2_train::data::{DataSplit, caption_class, held_out_keys};
use dalle2_train::recipes::{ImageData, Pair, PairImages, PairSplits, Preset, TrainData, TrainItem};
use image::RgbImage;

use crate::{CaptionOptions, EmojiDataset, EmojiStore, Sample, Split, Subset, with_article};

/// Directory of the renderings that are shared between runs.
pub const CACHE: &str = "data/emoji";

/// Captions vary in wording only, so that every image shows its subject at full size on white.
const CAPTIONS: CaptionOptions = CaptionOptions { backgrounds: 0.0, placement: 0.0, scale: 0.0, wording: 0.3 };

/// Captioned emoji for the recipes.
#[derive(Clone)]
pub struct EmojiData {
    store: Arc<EmojiStore>,
    items: Vec<usize>,
}

impl EmojiData {
    /// Creates a data set of the emoji of a subset that training may see.
    ///
    /// # Errors
    /// If the catalogue lacks an emoji of the subset.
    pub fn new(store: Arc<EmojiStore>, subset: Subset) -> Result<Self> {
        let items = subset.select(store.catalogue(), Split::Seen)?;
        Ok(Self { store, items })
    }
}

impl TrainData for EmojiData {
    fn len(&self) -> usize {
        self.items.len()
    }

    fn batch(&self, seed: u64, step: u64, count: usize, size: usize) -> Result<Vec<TrainItem>> {
        let data =
            EmojiDataset::new(self.store.clone(), self.items.clone(), &[size as u32])?.with_captions(CAPTIONS)?;
        let item = |sample: Sample| {
            let image = sample.images.into_iter().next()?;
            Some(TrainItem { caption: sample.caption, image, class: sample.emoji_index as u64 })
        };
        Ok(data.batch(seed, step, count)?.into_iter().filter_map(item).collect())
    }

    fn item(&self, index: usize, size: usize) -> Result<TrainItem> {
        let emoji = self.items[index];
        let caption = self.store.emoji(emoji)?.name.clone();
        Ok(TrainItem { caption, image: self.store.image(emoji, size as u32)?, class: emoji as u64 })
    }

    fn words(&self) -> Result<Vec<String>> {
        let mut words: Vec<String> =
            self.items.iter().map(|&emoji| Ok(self.store.emoji(emoji)?.name.clone())).collect::<Result<_>>()?;
        // Held-out compositions combine words of other emoji; wordings and scenes add these:
        words.push("a an emoji of the small on red orange yellow green blue purple gray black background".into());
        words.push("in the top bottom left right corner middle center upper lower edge".into());
        Ok(words)
    }

    fn split(&self, share: f64) -> Result<DataSplit<Arc<dyn TrainData>>> {
        let keys = self.items.iter().map(|&emoji| Ok(caption_class(&self.store.emoji(emoji)?.name)));
        let keys = keys.collect::<Result<Vec<u64>>>()?;
        let held_out = held_out_keys(&keys, share)?;
        let part = |is_held_out: bool| {
            let selected = self.items.iter().zip(&keys).filter(|(_, key)| held_out.contains(key) == is_held_out);
            let items = selected.map(|(item, _)| *item).collect();
            Arc::new(Self { store: self.store.clone(), items }) as Arc<dyn TrainData>
        };
        Ok(DataSplit { train: part(false), held_out: part(true) })
    }
}

impl PairImages for EmojiStore {
    fn image(&self, item: usize, size: usize) -> Result<RgbImage> {
        Self::image(self, item, size as u32)
    }
}

/// Returns the captions of a subset as pairs for training and held-out pairs.
///
/// An emoji has up to three wordings ("rose", "a rose", "an emoji of a rose"), and one of them is held out, in turn. People
/// have one caption each; the compositions that CLIP's training leaves out are held out here too.
///
/// # Errors
/// If the catalogue lacks an emoji of the subset.
pub fn pair_splits(store: &EmojiStore, subset: Subset) -> Result<PairSplits> {
    let (mut train, mut held_out) = (Vec::new(), Vec::new());
    for (turn, item) in subset.select(store.catalogue(), Split::Seen)?.into_iter().enumerate() {
        let name = store.emoji(item)?.name.clone();
        let article = with_article(&name);
        let wordings = if name.contains(':') {
            vec![name]
        } else if article == name {
            vec![name.clone(), format!("an emoji of {name}")]
        } else {
            vec![name, article.clone(), format!("an emoji of {article}")]
        };
        let out = (wordings.len() > 1).then_some(turn % wordings.len());
        for (i, caption) in wordings.into_iter().enumerate() {
            let pair = Pair { caption, item, composition: false };
            if out == Some(i) { held_out.push(pair) } else { train.push(pair) }
        }
    }
    for item in subset.select(store.catalogue(), Split::HeldOut)? {
        held_out.push(Pair { caption: store.emoji(item)?.name.clone(), item, composition: true });
    }
    Ok(PairSplits { train, held_out })
}

/// Opens the data sets that a command line names: `emoji`, or folders, index files and shards.
///
/// # Errors
/// If `emoji` is mixed with others, the subset is unknown, or a data set cannot be opened.
pub fn open_training_data(
    specs: &[String],
    subset: Option<&str>,
    preset: Preset,
    workers: Option<usize>,
) -> Result<Arc<dyn TrainData>> {
    if specs != ["emoji"] {
        if specs.iter().any(|spec| spec == "emoji") {
            return Err(ConfigError::new("data", specs.join(", "), "must be `emoji` alone, or other data sets").into());
        }
        return Ok(Arc::new(ImageData::open(specs, workers)?));
    }
    let subset = match subset {
        Some(name) => name.parse()?,
        None => match preset {
            Preset::Tiny | Preset::Portable => Subset::Tiny,
            Preset::Emoji | Preset::Small | Preset::Base | Preset::Karlo | Preset::Paper => Subset::Small,
        },
    };
    Ok(Arc::new(EmojiData::new(Arc::new(EmojiStore::open(&[], Path::new(CACHE))?), subset)?))
}
