//! Embedding a data set with a frozen CLIP.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use dalle2_clip::train::Jitter;
use dalle2_core::image::RgbImage;
use dalle2_core::{ConfigError, Error, Result, TextCondition, TextEncoder};
use indicatif::ProgressBar;
use rayon::prelude::*;

use super::data::{ImageData, TrainData};
use super::frozen::FrozenClip;
use crate::data::{EmbeddedPairs, EmbeddingInfo, EmbeddingSet, EmbeddingWriter, hash};
use crate::{mix_seed, step_rng};

/// Captions in one forward pass of the text encoder.
const BATCH: usize = 64;
/// Stream of the random numbers that shift and scale images.
const JITTER_STREAM: u64 = 0x6a69_7474;

/// Shifts and scales of CLIP's own training, within which its embeddings are reliable.
pub const CLIP_JITTER: Jitter = Jitter { shift: 0.06, scale: 0.08 };

/// A caption and the index of its image.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// The caption.
    pub caption: String,
    /// Index of the image in its [`PairImages`].
    pub item: usize,
    /// Whether the caption combines concepts that CLIP never saw together.
    pub composition: bool,
}

/// Images by index.
pub trait PairImages: Send + Sync {
    /// Returns an image at `size` pixels.
    ///
    /// # Errors
    /// If it cannot be read.
    fn image(&self, item: usize, size: usize) -> Result<RgbImage>;
}

impl<T: TrainData + ?Sized> PairImages for T {
    fn image(&self, item: usize, size: usize) -> Result<RgbImage> {
        self.item(item, size).map(|item| item.image)
    }
}

/// Pairs for training and held-out pairs.
#[derive(Debug, Clone)]
pub struct PairSplits {
    /// For training.
    pub train: Vec<Pair>,
    /// Never used in training.
    pub held_out: Vec<Pair>,
}

/// Number and strength of the variations of each image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Variations {
    /// Images per pair, at least 1; the first one is shifted and scaled too.
    pub count: usize,
    /// Strength of shifts and scales.
    pub jitter: Jitter,
    /// Seed of the variations.
    pub seed: u64,
}

impl Variations {
    /// Checks the values.
    ///
    /// # Errors
    /// If there is no variation, or a shift or scale is outside [0, 0.5).
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.count == 0 {
            return Err(ConfigError::new("variations", 0, "must be at least 1"));
        }
        for (field, value) in [("shift", self.jitter.shift), ("scale", self.jitter.scale)] {
            if !(0.0..0.5).contains(&value) {
                return Err(ConfigError::new(field, value, "must be at least 0 and below 0.5"));
            }
        }
        Ok(())
    }

    /// Returns image `index` of the set: the pair `index % pairs` in variation `index / pairs`.
    ///
    /// # Errors
    /// If the image cannot be read.
    pub fn image(&self, images: &dyn PairImages, pair: &Pair, index: usize, size: usize) -> Result<RgbImage> {
        let image = images.image(pair.item, size)?;
        Ok(self.jitter.apply(&image, &mut step_rng(self.seed, JITTER_STREAM, index as u64)))
    }
}

/// A data set to embed.
pub struct EmbedJob<'a> {
    /// Description of data and encoders, in words.
    pub source: String,
    /// The images.
    pub images: &'a dyn PairImages,
    /// The pairs.
    pub pairs: &'a [Pair],
    /// The variations of each image.
    pub variations: Variations,
    /// Pairs in a file.
    pub shard_size: usize,
}

impl EmbedJob<'_> {
    /// Writes the embedded pairs into `dir`, or resumes an interrupted job, and reads the result.
    ///
    /// # Errors
    /// If an image cannot be read, `dir` holds another set, or a file cannot be written.
    pub fn run(self, dir: &Path, clip: &FrozenClip) -> Result<EmbeddingSet> {
        self.variations.validate()?;
        let sizes = clip.sizes();
        let info = EmbeddingInfo {
            embed_dim: sizes.embed_dim,
            token_width: sizes.token_width,
            context_length: sizes.context_length,
            items: self.pairs.len() * self.variations.count,
            shard_size: self.shard_size,
            source: format!("{}; {:?}", self.source, self.variations),
            data_fingerprint: Some(self.fingerprint(clip.image_size())?),
            encoder_fingerprint: Some(clip.fingerprint()?),
        };
        let mut writer = EmbeddingWriter::open(dir, info.clone())?;
        writer.write_null(clip.null())?;
        let bar = ProgressBar::new(writer.pending().iter().map(|shard| info.items_of(*shard).len() as u64).sum());
        for shard in writer.pending().to_vec() {
            let items = info.items_of(shard);
            let count = items.len() as u64;
            writer.write(shard, &self.encode(items, clip)?)?;
            bar.inc(count);
        }
        bar.finish_and_clear();
        EmbeddingSet::open(dir)
    }

    /// Hashes all captions and the pixels of all images at the size that the encoder reads.
    fn fingerprint(&self, size: usize) -> Result<String> {
        let images: BTreeSet<usize> = self.pairs.iter().map(|pair| pair.item).collect();
        let images: Vec<usize> = images.into_iter().collect();
        let pixels = images.par_iter().map(|item| Ok((*item, hash(self.images.image(*item, size)?.into_raw()))));
        let pixels = pixels.collect::<Result<BTreeMap<usize, u64>>>()?;
        let settings = hash(format!("{size} {:?}", self.variations).bytes());
        let all = self.pairs.iter().fold(settings, |state, pair| {
            let image = pixels.get(&pair.item).copied().unwrap_or_default();
            mix_seed(state, hash(pair.caption.bytes()), image)
        });
        Ok(format!("{all:016x}"))
    }

    fn encode(&self, items: std::ops::Range<usize>, clip: &FrozenClip) -> Result<EmbeddedPairs> {
        let pair = |item: usize| &self.pairs[item % self.pairs.len()];
        let captions: Vec<String> = items.clone().map(|item| pair(item).caption.clone()).collect();
        let size = clip.image_size();
        let images = items.map(|item| self.variations.image(self.images, pair(item), item, size));
        let images = images.collect::<Result<Vec<_>>>()?;
        let text: Vec<&str> = captions.iter().map(String::as_str).collect();
        let encoded = text.chunks(BATCH).map(|captions| clip.text.encode_truncated(captions).map(|(text, _)| text));
        let text = encoded.reduce(|all: Result<TextCondition>, next| Ok(all?.cat(next?)));
        let text = text.ok_or_else(|| Error::Input("a shard holds at least one pair".into()))??;
        Ok(EmbeddedPairs { image: clip.encode_images(&images)?, captions, text })
    }
}

impl ImageData {
    /// Divides the items into pairs for training and held-out pairs: of every `every` items in the order of their names,
    /// the last one is held out.
    ///
    /// The place decides, before any image is read. An item that cannot be read is missing from its part and named in the
    /// log; no other item replaces it.
    ///
    /// # Errors
    /// If `every` is below 2, or no item can be read.
    pub fn pair_splits(&self, every: usize) -> Result<PairSplits> {
        if every < 2 {
            return Err(
                ConfigError::new("hold_out", every, "must be at least 2, or no item is left to train on").into()
            );
        }
        let (mut train, mut held_out) = (Vec::new(), Vec::new());
        for (item, caption) in self.readable_captions().into_iter().enumerate() {
            let Some(caption) = caption else { continue };
            let pair = Pair { caption, item, composition: false };
            if item % every == every - 1 { held_out.push(pair) } else { train.push(pair) }
        }
        if train.is_empty() && held_out.is_empty() {
            return Err(Error::Input("no image of the data set can be read".into()));
        }
        Ok(PairSplits { train, held_out })
    }
}
