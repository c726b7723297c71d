//! Contrastive training: [`ClipTask`] and its batches.

mod cached;
mod task;

use burn::prelude::*;
use dalle2_core::image::{RgbImage, to_tensor};
use dalle2_core::text::ClipTokenizer;
use dalle2_core::{ConfigError, Result};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

pub use task::{ClipLoss, ClipTask, ClipTaskOptions, ImageTower};

use crate::text_encoder::tokenize_truncated;
use crate::{ClipConfig, TokenBatch, preprocess};

/// A batch of images and their captions.
#[derive(Debug, Clone)]
pub struct ClipBatch {
    /// `[B, 3, image_size, image_size]`, preprocessed.
    pub pixels: Tensor<4>,
    /// B captions.
    pub captions: TokenBatch,
    /// Class of each pair; pairs of one class match each other.
    pub targets: Vec<usize>,
    /// Indices of the patches in use, `[B, K]`; `None` uses all of them.
    pub patches: Option<Tensor<2, Int>>,
    /// Seed of dropout in batches that exceed [`ClipTaskOptions::chunk`].
    pub seed: u64,
}

impl ClipBatch {
    /// Returns the number of pairs.
    pub fn len(&self) -> usize {
        self.targets.len()
    }

    /// Returns whether there are no pairs.
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }
}

/// Random shifts and scalings of training images. Colours do not change, because captions name them.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Jitter {
    /// Maximum shift along each axis, as a fraction of the side, below 0.5.
    pub shift: f32,
    /// Maximum change of the scale in either direction, below 0.5: 0.1 means between 0.9 and 1.1.
    pub scale: f32,
}

/// Creates [`ClipBatch`]es from captioned images.
#[derive(Debug)]
pub struct ClipBatcher {
    config: ClipConfig,
    tokenizer: ClipTokenizer,
    jitter: Jitter,
    unknown_probability: f64,
    patch_dropout: f64,
}

impl ClipBatcher {
    /// Creates a batcher for a model of `config`, without jitter. If the vocabulary is restricted, one token in a hundred
    /// is replaced by the unknown token, so that its embedding is trained.
    ///
    /// # Errors
    /// If the configuration is invalid.
    pub fn new(config: ClipConfig) -> Result<Self> {
        config.validate()?;
        let tokenizer = ClipTokenizer::openai()?;
        Ok(Self { config, tokenizer, jitter: Jitter::default(), unknown_probability: 0.01, patch_dropout: 0.0 })
    }

    /// Shifts and scales the images at random.
    ///
    /// # Errors
    /// If a value is not in [0, 0.5).
    pub fn with_jitter(mut self, jitter: Jitter) -> Result<Self> {
        for (field, value) in [("jitter.shift", jitter.shift), ("jitter.scale", jitter.scale)] {
            if !(0.0..0.5).contains(&value) {
                return Err(ConfigError::new(field, value, "must be at least 0 and below 0.5").into());
            }
        }
        self.jitter = jitter;
        Ok(self)
    }

    /// Sets the probability that a token is replaced by the unknown token; without effect if the vocabulary is not
    /// restricted.
    ///
    /// # Errors
    /// If the value is not in [0, 1].
    pub fn with_unknown_probability(mut self, probability: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&probability) {
            return Err(ConfigError::new("unknown_probability", probability, "must be between 0 and 1").into());
        }
        self.unknown_probability = probability;
        Ok(self)
    }

    /// Sets the fraction of the patches of each image that is left out at random. At least one patch remains.
    ///
    /// # Errors
    /// If the value is not in [0, 1).
    pub fn with_patch_dropout(mut self, share: f64) -> Result<Self> {
        if !(0.0..1.0).contains(&share) {
            return Err(ConfigError::new("patch_dropout", share, "must be at least 0 and below 1").into());
        }
        self.patch_dropout = share;
        Ok(self)
    }

    /// Counts the captions that [`batch`](Self::batch) truncates, for the report of a run.
    ///
    /// # Errors
    /// If a caption cannot be encoded.
    pub fn count_truncated(&self, captions: &[&str]) -> Result<usize> {
        tokenize_truncated(&self.tokenizer, &self.config.text, captions).map(|(_, truncated)| truncated)
    }

    /// Creates a batch from (caption, image, class) triples, see [`ClipBatch::targets`]. The images have one common size, not
    /// necessarily the model's. Captions that exceed the context are truncated before their end-of-text token.
    ///
    /// # Errors
    /// If there are no items, or the images differ in size.
    pub fn batch(
        &self,
        items: &[(&str, &RgbImage, usize)],
        rng: &mut ChaCha8Rng,
        device: &Device,
    ) -> Result<ClipBatch> {
        let captions: Vec<&str> = items.iter().map(|(caption, _, _)| *caption).collect();
        let (mut tokens, _) = tokenize_truncated(&self.tokenizer, &self.config.text, &captions)?;
        // Padding does not affect the embedding, so the batch needs only the length of its longest caption.
        let width = tokens.iter().map(|(_, length)| *length).max().unwrap_or(0);
        tokens.iter_mut().for_each(|(ids, _)| ids.truncate(width));
        let captions = self.hide_words(&tokens, rng, device)?;

        let images = if self.jitter == Jitter::default() {
            to_tensor(&items.iter().map(|(_, image, _)| (*image).clone()).collect::<Vec<_>>(), device)?
        } else {
            let moved: Vec<_> = items.iter().map(|(_, image, _)| self.jitter.apply(image, rng)).collect();
            to_tensor(&moved, device)?
        };
        let pixels = preprocess(images, &self.config.vision)?;
        let patches = self.choose_patches(items.len(), rng, device);
        let targets = items.iter().map(|(_, _, class)| *class).collect();
        Ok(ClipBatch { pixels, captions, targets, patches, seed: rng.random() })
    }

    /// Samples the patches in use for each image, in ascending order.
    fn choose_patches(&self, b: usize, rng: &mut ChaCha8Rng, device: &Device) -> Option<Tensor<2, Int>> {
        if self.patch_dropout == 0.0 {
            return None;
        }
        let n = self.config.vision.n_patches();
        let k = (((1.0 - self.patch_dropout) * n as f64).round() as usize).max(1);
        let chosen: Vec<i64> = (0..b)
            .flat_map(|_| {
                let mut patches = rand::seq::index::sample(rng, n, k).into_vec();
                patches.sort_unstable();
                patches.into_iter().map(|patch| patch as i64)
            })
            .collect();
        Some(Tensor::from_data(TensorData::new(chosen, [b, k]), device))
    }

    /// Converts the captions to rows of the embedding and replaces tokens at random by the unknown token.
    fn hide_words(&self, tokens: &[(Vec<u32>, usize)], rng: &mut ChaCha8Rng, device: &Device) -> Result<TokenBatch> {
        let config = &self.config.text;
        let mut batch = config.batch(tokens, device)?;
        let Some(unknown) = config.unknown_row() else {
            return Ok(batch);
        };
        let hidden: Vec<bool> = tokens
            .iter()
            .flat_map(|(ids, length)| (0..ids.len()).map(move |i| i > 0 && i + 1 < *length)) // neither start nor end
            .map(|is_word| is_word && rng.random_bool(self.unknown_probability))
            .collect();
        let hidden = Tensor::<2, Bool>::from_data(TensorData::new(hidden, batch.rows.dims()), device);
        batch.rows = batch.rows.mask_fill(hidden, unknown as i64);
        Ok(batch)
    }
}

impl Jitter {
    /// Shifts the image and scales it about its centre; pixels outside the image repeat its border.
    pub fn apply(&self, image: &RgbImage, rng: &mut ChaCha8Rng) -> RgbImage {
        let mut uniform = |limit: f32| (rng.random::<f32>() * 2.0 - 1.0) * limit;
        let scale = 1.0 + uniform(self.scale);
        let [w, h] = [image.width() as f32, image.height() as f32];
        let [dx, dy] = [uniform(self.shift) * w, uniform(self.shift) * h];
        RgbImage::from_fn(image.width(), image.height(), |x, y| {
            let source =
                |at: u32, side: f32, shift: f32| (at as f32 + 0.5 - side / 2.0 - shift) / scale + side / 2.0 - 0.5;
            bilinear(image, source(x, w, dx), source(y, h, dy)).into()
        })
    }
}

/// Interpolates the colour at a position in pixels, where (0, 0) is the centre of the first pixel.
fn bilinear(image: &RgbImage, x: f32, y: f32) -> [u8; 3] {
    let x = x.clamp(0.0, image.width() as f32 - 1.0);
    let y = y.clamp(0.0, image.height() as f32 - 1.0);
    let [left, top] = [x as u32, y as u32];
    let [right, bottom] = [(left + 1).min(image.width() - 1), (top + 1).min(image.height() - 1)];
    let [fx, fy] = [x - left as f32, y - top as f32];
    let channel = |i: usize| {
        let at = |x, y| f32::from(image.get_pixel(x, y)[i]);
        let upper = at(left, top) * (1.0 - fx) + at(right, top) * fx;
        let lower = at(left, bottom) * (1.0 - fx) + at(right, bottom) * fx;
        (upper * (1.0 - fy) + lower * fy).round() as u8
    };
    [channel(0), channel(1), channel(2)]
}

#[cfg(test)]
mod tests;
