//! Filters of captions and images. A pipeline has none by default.

use std::sync::Arc;

use burn::prelude::*;
use dalle2_core::image::{RgbImage, to_tensor};
use dalle2_core::metrics::similarity_matrix;
use dalle2_core::{ConfigError, Error, ImageEncoder, Result};

use crate::Pipeline;

/// A filter's decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Accepts.
    Allow,
    /// Refuses, with the reason for [`Error::Refused`].
    Refuse(String),
}

/// Checks captions before generation. Functions `Fn(&str) -> Result<Verdict>` are filters.
///
/// ```
/// use dalle2::{PromptFilter, Verdict};
///
/// let polite = |caption: &str| {
///     Ok(if caption.contains('!') { Verdict::Refuse("do not shout".into()) } else { Verdict::Allow })
/// };
/// assert_eq!(polite.check("a koala")?, Verdict::Allow);
/// # Ok::<(), dalle2::Error>(())
/// ```
pub trait PromptFilter: Send + Sync {
    /// Decides about a caption.
    ///
    /// # Errors
    /// If the filter fails; the request fails with it.
    fn check(&self, caption: &str) -> Result<Verdict>;
}

impl<F: Fn(&str) -> Result<Verdict> + Send + Sync> PromptFilter for F {
    fn check(&self, caption: &str) -> Result<Verdict> {
        self(caption)
    }
}

/// Checks images before they are returned. Functions `Fn(&[RgbImage]) -> Result<Vec<Verdict>>` are filters.
pub trait ImageFilter: Send + Sync {
    /// Decides about each image, in their order.
    ///
    /// # Errors
    /// If the filter fails; the request fails with it.
    fn check(&self, images: &[RgbImage]) -> Result<Vec<Verdict>>;
}

impl<F: Fn(&[RgbImage]) -> Result<Vec<Verdict>> + Send + Sync> ImageFilter for F {
    fn check(&self, images: &[RgbImage]) -> Result<Vec<Verdict>> {
        self(images)
    }
}

/// Refuses captions that contain one of a list of words or phrases, as complete words in any case.
///
/// ```
/// use dalle2::{BlockList, PromptFilter, Verdict};
///
/// let list = BlockList::new(["axe", "hand gun"])?;
/// assert_eq!(list.check("a relaxed koala")?, Verdict::Allow);
/// assert_ne!(list.check("two HAND-GUN emoji")?, Verdict::Allow);
/// # Ok::<(), dalle2::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct BlockList {
    phrases: Vec<Vec<String>>,
}

impl BlockList {
    /// Creates a list of words and phrases.
    ///
    /// # Errors
    /// If one of them has no letter or digit, because it would refuse everything.
    pub fn new(phrases: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Self> {
        let split = |phrase: &str| match words(phrase) {
            empty if empty.is_empty() => {
                Err(ConfigError::new("phrases", format!("{phrase:?}"), "must be a phrase with a letter or a digit")
                    .into())
            }
            words => Ok(words),
        };
        Ok(Self { phrases: phrases.into_iter().map(|phrase| split(phrase.as_ref())).collect::<Result<_>>()? })
    }
}

impl PromptFilter for BlockList {
    fn check(&self, caption: &str) -> Result<Verdict> {
        let caption = words(caption);
        let blocked = self.phrases.iter().find(|phrase| caption.windows(phrase.len()).any(|part| part == **phrase));
        Ok(match blocked {
            Some(phrase) => Verdict::Refuse(format!("the caption contains {:?}", phrase.join(" "))),
            None => Verdict::Allow,
        })
    }
}

/// The lower-case words of a text.
fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// Refuses images whose CLIP embedding is too similar to one of a list of descriptions.
#[derive(Debug, Clone)]
pub struct SimilarityFilter {
    encoder: Arc<dyn ImageEncoder>,
    descriptions: Vec<String>,
    embeddings: Tensor<2>,
    threshold: f64,
    device: Device,
}

impl SimilarityFilter {
    /// Creates a filter with the encoders of a pipeline. `threshold` is the lowest cosine that is refused; a suitable value
    /// depends on the CLIP model and must be measured.
    ///
    /// # Errors
    /// If the pipeline has no image encoder, there is no description or one is too long, or the threshold leaves −1 to 1.
    pub fn new(pipeline: &Pipeline, descriptions: &[&str], threshold: f64) -> Result<Self> {
        let Some(encoder) = pipeline.image_encoder.clone() else {
            return Err(Error::Mismatch("a similarity filter needs a pipeline with an image encoder".into()));
        };
        if !(-1.0..=1.0).contains(&threshold) {
            return Err(ConfigError::new("threshold", threshold, "must be between -1 and 1").into());
        }
        if descriptions.is_empty() {
            return Err(ConfigError::new("descriptions", "[]", "must be at least one description").into());
        }
        Ok(Self {
            encoder,
            embeddings: pipeline.text_encoder.encode(descriptions)?.pooled,
            descriptions: descriptions.iter().map(|text| (*text).to_owned()).collect(),
            threshold,
            device: pipeline.device.clone(),
        })
    }
}

impl ImageFilter for SimilarityFilter {
    fn check(&self, images: &[RgbImage]) -> Result<Vec<Verdict>> {
        let embeddings = self.encoder.encode(to_tensor(images, &self.device)?)?;
        let cosines = similarity_matrix(embeddings, self.embeddings.clone())?;
        let cosines: Vec<f32> =
            cosines.try_into_vec_as().map_err(|e| Error::Device(format!("reading similarities: {e}")))?;
        let verdict = |cosines: &[f32]| {
            // NaN counts as similar.
            let harmless = |cosine: f32| f64::from(cosine) < self.threshold;
            let similar = cosines.iter().position(|&cosine| !harmless(cosine));
            similar.map_or(Verdict::Allow, |i| {
                Verdict::Refuse(format!("similar to {:?} by {:.3}", self.descriptions[i], cosines[i]))
            })
        };
        Ok(cosines.chunks_exact(self.descriptions.len()).map(verdict).collect())
    }
}
