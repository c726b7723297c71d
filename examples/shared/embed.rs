//! Pairs of captions and images, and what a frozen CLIP says of them.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use burn::data::dataset::Dataset;
use burn::prelude::Tensor;
use dalle2::Device;
use dalle2::base::image::{RgbImage, fit_square, to_tensor};
use dalle2::base::{ImageEncoder, TextCondition, TextEncoder};
use dalle2::clip::train::Jitter;
use dalle2::clip::{ClipImageEncoder, ClipTextEncoder};
use dalle2_emoji::{EmojiStore, Split, Subset, with_article};
use dalle2_train::data::{CaptionedImage, EmbeddedPairs, EmbeddingInfo, EmbeddingSet, EmbeddingWriter};
use dalle2_train::step_rng;
use indicatif::ProgressBar;

/// Images that are encoded at once.
const BATCH: usize = 64;
/// Stream of the random numbers that move and scale images.
const JITTER: u64 = 0x6a69_7474;

/// How far images are moved and scaled: as in CLIP's own training, so that what it says of them can be trusted.
pub const CLIP_JITTER: Jitter = Jitter { shift: 0.06, scale: 0.08 };

/// A caption and where its image is.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// The caption.
    pub caption: String,
    /// Index of the emoji, or of the image among one's own.
    pub item: usize,
    /// Whether the caption is a composition that CLIP has not seen, rather than another wording.
    pub composition: bool,
}

/// Where images come from.
#[derive(Clone)]
pub enum Pictures {
    /// Renderings.
    Emoji(Arc<EmojiStore>),
    /// Files.
    Own(Arc<dyn Dataset<CaptionedImage>>),
}

impl Pictures {
    /// An image at this size.
    pub fn image(&self, item: usize, size: usize) -> Result<RgbImage> {
        Ok(match self {
            Self::Emoji(store) => store.image(item, size as u32)?,
            Self::Own(own) => {
                let found = own.get(item).map_err(|e| anyhow::anyhow!("item {item}: {e}"))?;
                fit_square(&found.image, size as u32)
            }
        })
    }
}

/// Pairs for training and pairs that are held out.
#[derive(Debug, Clone)]
pub struct Splits {
    /// For training.
    pub train: Vec<Pair>,
    /// Never seen in training; no image occurs twice.
    pub held_out: Vec<Pair>,
}

/// The captions of a subset of the emoji.
///
/// A thing has up to three wordings ("rose", "a rose", "an emoji of a rose"), of which one is held out, in turn. People
/// have one caption each; the compositions that CLIP's training left out are held out here too.
pub fn emoji_splits(store: &EmojiStore, subset: Subset) -> Result<Splits> {
    let (mut train, mut held_out) = (Vec::new(), Vec::new());
    for (turn, item) in subset.select(store.catalogue(), Split::Seen)?.into_iter().enumerate() {
        let name = store.emoji(item)?.name.clone();
        let article = with_article(&name);
        let wordings = match name.contains(':') {
            true => vec![name],
            false if article == name => vec![name.clone(), format!("an emoji of {name}")],
            false => vec![name, article.clone(), format!("an emoji of {article}")],
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
    Ok(Splits { train, held_out })
}

/// The pairs of one's own images: of every `every` one is held out.
pub fn own_splits(own: &dyn Dataset<CaptionedImage>, every: usize) -> Result<Splits> {
    let (mut train, mut held_out) = (Vec::new(), Vec::new());
    for item in 0..own.len() {
        let caption = own.get(item).map_err(|e| anyhow::anyhow!("item {item}: {e}"))?.caption;
        let pair = Pair { caption, item, composition: false };
        if item % every == every - 1 { held_out.push(pair) } else { train.push(pair) }
    }
    Ok(Splits { train, held_out })
}

/// Both encoders of a pipeline directory.
#[derive(Debug)]
pub struct Encoders {
    /// The text encoder.
    pub text: ClipTextEncoder,
    /// The image encoder.
    pub image: ClipImageEncoder,
    /// Their device.
    pub device: Device,
}

impl Encoders {
    /// Loads them.
    pub fn load(dir: &Path, device: &Device) -> Result<Self> {
        let context = || format!("{} must hold a text_encoder and an image_encoder", dir.display());
        Ok(Self {
            text: ClipTextEncoder::load(dir.join("text_encoder"), device).with_context(context)?,
            image: ClipImageEncoder::load(dir.join("image_encoder"), device).with_context(context)?,
            device: device.clone(),
        })
    }

    /// Side of the images that are read.
    pub fn image_size(&self) -> usize {
        self.image.config().image_size
    }

    /// The embeddings of images, `[N, D]`.
    pub fn images(&self, images: &[RgbImage]) -> Result<Tensor<2>> {
        ensure!(!images.is_empty(), "no image to encode");
        let chunk = |images: &[RgbImage]| Ok(self.image.encode(to_tensor(images, &self.device)?)?);
        Ok(Tensor::cat(images.chunks(BATCH).map(chunk).collect::<Result<Vec<_>>>()?, 0))
    }
}

/// How often and how far the image of a pair is varied.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Variations {
    /// Images of each pair, at least 1; the first one too is moved and scaled.
    pub count: usize,
    /// How far they are moved and scaled.
    pub jitter: Jitter,
    /// Seed of the variations.
    pub seed: u64,
}

impl Variations {
    /// Image `index` of the set: the pair `index % pairs` in variation `index / pairs`.
    pub fn image(&self, pictures: &Pictures, pair: &Pair, index: usize, size: usize) -> Result<RgbImage> {
        let image = pictures.image(pair.item, size)?;
        Ok(self.jitter.apply(&image, &mut step_rng(self.seed, JITTER, index as u64)))
    }
}

/// Writes what CLIP says of `pairs` into `dir`, or goes on doing so, and reads the result.
pub fn embed(
    dir: &Path,
    source: String,
    (pictures, pairs): (&Pictures, &[Pair]),
    variations: &Variations,
    encoders: &Encoders,
    shard_size: usize,
) -> Result<EmbeddingSet> {
    let info = EmbeddingInfo {
        embed_dim: encoders.text.embed_dim(),
        token_width: encoders.text.token_width(),
        context_length: encoders.text.context_length(),
        items: pairs.len() * variations.count,
        shard_size,
        source: format!("{source}; {variations:?}"),
    };
    let mut writer = EmbeddingWriter::open(dir, info.clone())?;
    writer.write_null(&encoders.text.encode(&[""])?)?;
    let bar = ProgressBar::new(writer.pending().iter().map(|shard| info.items_of(*shard).len() as u64).sum());
    for shard in writer.pending().to_vec() {
        let items: Vec<usize> = info.items_of(shard).collect();
        let captions: Vec<String> = items.iter().map(|i| pairs[i % pairs.len()].caption.clone()).collect();
        let mut images = Vec::with_capacity(items.len());
        for &i in &items {
            images.push(variations.image(pictures, &pairs[i % pairs.len()], i, encoders.image_size())?);
        }
        let text: Vec<&str> = captions.iter().map(String::as_str).collect();
        let encode = |captions: &[&str]| -> Result<TextCondition> { Ok(encoders.text.encode(captions)?) };
        let encoded = text.chunks(BATCH).map(encode).reduce(|all, next| Ok(all?.cat(next?)));
        let text = encoded.context("a shard holds at least one pair")??;
        writer.write(shard, &EmbeddedPairs { image: encoders.images(&images)?, captions, text })?;
        bar.inc(items.len() as u64);
    }
    bar.finish_and_clear();
    Ok(EmbeddingSet::open(dir)?)
}
