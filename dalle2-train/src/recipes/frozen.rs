//! A trained CLIP that encodes batches and does not train.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::prelude::*;
use dalle2_clip::{ClipConfig, ClipImageEncoder, ClipTextEncoder};
use dalle2_core::image::{RgbImage, resize_area, resize_bicubic, to_tensor};
use dalle2_core::{Error, ImageEncoder, Result, TextCondition, TextEncoder};

use super::args::RecipeArgs;
use super::data::TrainItem;

/// Images in one forward pass of the image encoder.
const BATCH: usize = 64;

/// Both encoders of a pipeline directory, frozen. Clones share them.
#[derive(Debug, Clone)]
pub struct FrozenClip {
    /// The text encoder.
    pub text: Arc<ClipTextEncoder>,
    /// The image encoder.
    pub image: Arc<ClipImageEncoder>,
    null: TextCondition,
    device: Device,
    dir: PathBuf,
}

/// Widths and lengths of CLIP's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClipSizes {
    /// Width D of the embeddings.
    pub embed_dim: usize,
    /// Width W of the token encodings.
    pub token_width: usize,
    /// Number S of caption tokens.
    pub context_length: usize,
}

/// A batch of images and captions with their encodings.
#[derive(Debug, Clone)]
pub struct EncodedBatch {
    /// The images `[B, 3, H, W]` in [−1, 1].
    pub images: Tensor<4>,
    /// Their embeddings `[B, D]`.
    pub embedding: Tensor<2>,
    /// Their encoded captions.
    pub text: TextCondition,
}

impl FrozenClip {
    /// Loads `text_encoder` and `image_encoder` from a pipeline directory.
    ///
    /// # Errors
    /// If one of them is missing or damaged.
    pub fn load(dir: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let dir = dir.as_ref();
        let text = ClipTextEncoder::load(dir.join("text_encoder"), device)?;
        let image = ClipImageEncoder::load(dir.join("image_encoder"), device)?;
        let null = text.encode(&[""])?;
        Ok(Self { text: Arc::new(text), image: Arc::new(image), null, device: device.clone(), dir: dir.to_path_buf() })
    }

    /// Loads the CLIP that the recipe `clip` trained, with its sizes. A dry run without a trained CLIP uses the sizes of
    /// the preset.
    pub(super) fn open(args: &RecipeArgs, device: &Device) -> Result<(Option<Self>, ClipSizes)> {
        let dir = args.export_dir();
        match args.trained("text_encoder", "clip", |_| Self::load(&dir, device)) {
            Ok(clip) => {
                let sizes = clip.sizes();
                Ok((Some(clip), sizes))
            }
            Err(_) if args.dry_run => {
                let config = ClipConfig::preset(args.preset.name())?;
                let (token_width, context_length) = (config.text.d_model, config.text.context_length);
                Ok((None, ClipSizes { embed_dim: config.embed_dim(), token_width, context_length }))
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the widths and lengths of the encoders' outputs.
    pub fn sizes(&self) -> ClipSizes {
        ClipSizes {
            embed_dim: self.text.embed_dim(),
            token_width: self.text.token_width(),
            context_length: self.text.context_length(),
        }
    }

    /// Returns the side of the images that the image encoder reads, in pixels.
    pub fn image_size(&self) -> usize {
        self.image.config().image_size
    }

    /// Returns a fingerprint of the encoders' files.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        encoder_fingerprint(&self.dir)
    }

    /// Returns the device of the encoders.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Returns the encoded empty caption.
    pub fn null(&self) -> &TextCondition {
        &self.null
    }

    /// Encodes images and captions. Captions longer than the context are truncated.
    ///
    /// # Errors
    /// If the items have different sizes, or an encoder fails.
    pub fn encode(&self, items: &[TrainItem]) -> Result<EncodedBatch> {
        let images: Vec<RgbImage> = items.iter().map(|item| item.image.clone()).collect();
        let captions: Vec<&str> = items.iter().map(|item| item.caption.as_str()).collect();
        let images = to_tensor(&images, &self.device)?;
        Ok(EncodedBatch {
            embedding: self.image.encode(images.clone())?,
            images,
            text: self.text.encode_truncated(&captions)?.0,
        })
    }

    /// Encodes images alone: `[N, D]`.
    ///
    /// # Errors
    /// If there is no image, or the encoder fails.
    pub fn encode_images(&self, images: &[RgbImage]) -> Result<Tensor<2>> {
        if images.is_empty() {
            return Err(Error::Input("no image to encode".into()));
        }
        let encode = |images: &[RgbImage]| self.image.encode(to_tensor(images, &self.device)?);
        Ok(Tensor::cat(images.chunks(BATCH).map(encode).collect::<Result<Vec<_>>>()?, 0))
    }
}

/// Returns a checksum of all files of the encoders in a pipeline directory.
pub(super) fn encoder_fingerprint(dir: &Path) -> Result<String> {
    let mut hasher = crc32fast::Hasher::new();
    let mut bytes = 0;
    for folder in ["text_encoder", "image_encoder"] {
        let folder = dir.join(folder);
        let entries = std::fs::read_dir(&folder).and_then(|entries| entries.collect::<std::io::Result<Vec<_>>>());
        let mut files: Vec<PathBuf> =
            entries.map_err(|e| Error::io(&folder, e))?.into_iter().map(|entry| entry.path()).collect();
        files.sort();
        for file in files.iter().filter(|file| file.is_file()) {
            let content = std::fs::read(file).map_err(|e| Error::io(file, e))?;
            bytes += content.len();
            hasher.update(&content);
        }
    }
    Ok(format!("{:08x}-{bytes}", hasher.finalize()))
}

impl EncodedBatch {
    /// Moves the values to another device, for example one with autodiff.
    pub fn to_device(&self, device: &Device) -> Self {
        Self {
            images: self.images.clone().to_device(device),
            embedding: self.embedding.clone().to_device(device),
            text: self.text.to_device(device),
        }
    }
}

/// Resizes square images: by averaging where the sides divide evenly, else bicubic.
pub(super) fn resized(images: Tensor<4>, size: usize) -> Tensor<4> {
    let side = images.dims()[2];
    if side == size {
        images
    } else if side.is_multiple_of(size) {
        resize_area(images, side / size)
    } else {
        resize_bicubic(images, [size, size]).clamp(-1.0, 1.0)
    }
}
