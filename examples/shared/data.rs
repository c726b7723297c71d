//! What the training examples learn from: the emoji, or captioned images of your own.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use burn::prelude::Tensor;
use dalle2::Device;
use dalle2::base::image::{RgbImage, fit_square, resize_area, resize_bicubic, to_tensor};
use dalle2::base::{ImageEncoder, TextCondition, TextEncoder};
use dalle2::clip::{ClipConfig, ClipImageEncoder, ClipTextEncoder};
use dalle2_emoji::{CaptionOptions, EmojiDataset, EmojiStore, Split, Subset};
use dalle2_train::data::{CaptionedImage, DataSpec, Decoders, Mixture, MixtureItem};

use super::cli::{Preset, TrainArgs};

/// Where renderings are kept between runs.
pub const CACHE: &str = "data/emoji";

/// A captioned image at the size that was asked for.
#[derive(Debug, Clone)]
pub struct Item {
    /// The caption.
    pub caption: String,
    /// The image, square.
    pub image: RgbImage,
    /// Items of one class show the same thing.
    pub class: usize,
}

/// A data set for training; clones share it.
#[derive(Clone)]
pub enum Data {
    /// Emoji with captions that vary.
    Emoji(Arc<EmojiStore>, Vec<usize>),
    /// Images of one's own.
    Own(Arc<Own>),
}

/// Data sets of one's own, mixed, and the threads that decode them.
pub struct Own {
    /// In the order of the seed that was asked for last.
    mixture: Mutex<Arc<Mixture>>,
    decoders: Decoders,
}

impl Own {
    fn open(specs: &[String], workers: Option<usize>) -> Result<Self> {
        let specs: Vec<DataSpec> = specs.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        let mixture = Mixture::open(0, &specs)?;
        let passed_over = mixture.problems().len();
        tracing::info!("{} captioned images; {passed_over} items were passed over", mixture.len());
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self { mixture: Mutex::new(Arc::new(mixture)), decoders: Decoders::new(workers.unwrap_or_else(cores))? })
    }

    fn mixture(&self, seed: u64) -> dalle2::Result<Arc<Mixture>> {
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

impl Data {
    /// Opens what the command line names.
    pub fn open(args: &TrainArgs) -> Result<Self> {
        if args.data != ["emoji"] {
            ensure!(!args.data.iter().any(|data| data == "emoji"), "--data emoji cannot be mixed with others");
            return Ok(Self::Own(Arc::new(Own::open(&args.data, args.workers)?)));
        }
        let subset = args.subset.unwrap_or(match args.preset {
            Preset::Tiny | Preset::Portable => Subset::Tiny,
            Preset::Emoji | Preset::Small | Preset::Base | Preset::Karlo | Preset::Paper => Subset::Small,
        });
        let store = EmojiStore::open(&[], Path::new(CACHE))?;
        let items = subset.select(store.catalogue(), Split::Seen)?;
        Ok(Self::Emoji(Arc::new(store), items))
    }

    /// Number of concepts.
    pub fn len(&self) -> usize {
        match self {
            Self::Emoji(_, items) => items.len(),
            Self::Own(own) => own.current().len(),
        }
    }

    /// How captions vary: wording only, so that every image shows its subject at full size on white.
    fn captions() -> CaptionOptions {
        CaptionOptions { backgrounds: 0.0, placement: 0.0, scale: 0.0, wording: 0.3 }
    }

    /// The items of a training step, a function of (seed, step).
    pub fn batch(&self, seed: u64, step: u64, n: usize, size: usize) -> dalle2::Result<Vec<Item>> {
        match self {
            Self::Emoji(store, items) => {
                let data =
                    EmojiDataset::new(store.clone(), items.clone(), &[size as u32])?.with_captions(Self::captions())?;
                let samples = data.batch(seed, step, n)?;
                let item = |sample: dalle2_emoji::Sample| {
                    let image = sample.images.into_iter().next()?;
                    Some(Item { caption: sample.caption, image, class: sample.emoji_index })
                };
                Ok(samples.into_iter().filter_map(item).collect())
            }
            Self::Own(own) => {
                let mixture = own.mixture(seed)?;
                own.decoders.batch(&mixture, step, n, |_, item, image| Ok(own_item(&mixture, item, image, size)))
            }
        }
    }

    /// At most `most` items with their plain captions, spread over the data set, always the same ones.
    pub fn plain(&self, size: usize, most: usize) -> dalle2::Result<Vec<Item>> {
        let n = self.len().min(most);
        (0..n)
            .map(|i| {
                let index = i * self.len() / n;
                match self {
                    Self::Emoji(store, items) => Ok(Item {
                        caption: store.emoji(items[index])?.name.clone(),
                        image: store.image(items[index], size as u32)?,
                        class: items[index],
                    }),
                    Self::Own(own) => {
                        let mixture = own.current();
                        let item = mixture.nth(index);
                        Ok(own_item(&mixture, item, mixture.get(item)?, size))
                    }
                }
            })
            .collect()
    }

    /// Every word that captions can have, for the vocabulary of a small CLIP.
    pub fn words(&self) -> Result<Vec<String>> {
        match self {
            Self::Emoji(store, items) => {
                let mut words: Vec<String> =
                    items.iter().map(|&i| Ok(store.emoji(i)?.name.clone())).collect::<dalle2::Result<_>>()?;
                // Held-out compositions are made of words that others have too; wordings and scenes add these:
                words.push(
                    "a an emoji of the small on red orange yellow green blue purple gray black background".into(),
                );
                words.push("in the top bottom left right corner middle center upper lower edge".into());
                Ok(words)
            }
            Self::Own(own) => {
                let mixture = own.current();
                let captions = (0..mixture.len()).map(|i| mixture.caption(mixture.nth(i)));
                captions.collect::<dalle2::Result<_>>().context("reading the captions")
            }
        }
    }
}

fn own_item(mixture: &Mixture, item: MixtureItem, found: CaptionedImage, size: usize) -> Item {
    let CaptionedImage { caption, image } = found;
    Item { caption, image: fit_square(&image, size as u32), class: mixture.number(item) }
}

/// Square images at another size: averaged where that comes out even, else bicubic.
pub fn resized(images: Tensor<4>, size: usize) -> Tensor<4> {
    let side = images.dims()[2];
    match side {
        _ if side == size => images,
        _ if side.is_multiple_of(size) => resize_area(images, side / size),
        _ => resize_bicubic(images, [size, size]).clamp(-1.0, 1.0),
    }
}

/// A trained CLIP that encodes batches and does not learn.
#[derive(Debug, Clone)]
pub struct Frozen {
    /// The text encoder.
    pub text: Arc<ClipTextEncoder>,
    /// The image encoder.
    pub image: Arc<ClipImageEncoder>,
    null: TextCondition,
    device: Device,
}

/// Widths and lengths of what CLIP gives.
#[derive(Debug, Clone, Copy)]
pub struct Widths {
    /// Width D of the embeddings.
    pub embed_dim: usize,
    /// Width W of the captions' tokens.
    pub token_width: usize,
    /// Tokens of a caption.
    pub context_length: usize,
}

/// What CLIP says of a batch.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// The images `[B, 3, H, W]` in [−1, 1].
    pub images: Tensor<4>,
    /// Their embeddings `[B, D]`.
    pub embedding: Tensor<2>,
    /// Their captions.
    pub text: TextCondition,
}

impl Frozen {
    /// Loads both towers from the pipeline directory of the run.
    pub fn load(args: &TrainArgs, device: &Device) -> Result<Self> {
        let text = args.trained("text_encoder", "train_clip", |dir| ClipTextEncoder::load(dir, device))?;
        let image = args.trained("image_encoder", "train_clip", |dir| ClipImageEncoder::load(dir, device))?;
        let null = text.encode(&[""])?;
        Ok(Self { text: Arc::new(text), image: Arc::new(image), null, device: device.clone() })
    }

    /// As [`load`](Self::load), with its widths; a dry run without a trained CLIP has none, and the widths of the preset's.
    pub fn open(args: &TrainArgs, device: &Device) -> Result<(Option<Self>, Widths)> {
        match Self::load(args, device) {
            Ok(clip) => {
                let widths = Widths {
                    embed_dim: clip.text.embed_dim(),
                    token_width: clip.text.token_width(),
                    context_length: clip.text.context_length(),
                };
                Ok((Some(clip), widths))
            }
            Err(_) if args.dry_run => {
                let config = ClipConfig::preset(args.preset.name())?;
                let (token_width, context_length) = (config.text.d_model, config.text.context_length);
                Ok((None, Widths { embed_dim: config.embed_dim(), token_width, context_length }))
            }
            Err(error) => Err(error),
        }
    }

    /// Side of the images that the image encoder reads, in pixels.
    pub fn image_size(&self) -> usize {
        self.image.config().image_size
    }

    /// The encoded empty caption.
    pub fn null(&self) -> &TextCondition {
        &self.null
    }

    /// Encodes images and captions, of which those that do not fit the context lose their end.
    pub fn encode(&self, items: &[Item]) -> dalle2::Result<Encoded> {
        let images: Vec<RgbImage> = items.iter().map(|item| item.image.clone()).collect();
        let captions: Vec<&str> = items.iter().map(|item| item.caption.as_str()).collect();
        let images = to_tensor(&images, &self.device)?;
        Ok(Encoded {
            embedding: self.image.encode(images.clone())?,
            images,
            text: self.text.encode_truncated(&captions)?,
        })
    }
}

impl Encoded {
    /// The same values on another device, for example with autodiff.
    pub fn to_device(&self, device: &Device) -> Self {
        Self {
            images: self.images.clone().to_device(device),
            embedding: self.embedding.clone().to_device(device),
            text: self.text.to_device(device),
        }
    }
}
