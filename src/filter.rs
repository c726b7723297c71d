//! Hooks that refuse captions and images. None is installed unless you install it.

use std::fmt;
use std::sync::Arc;

use burn::prelude::*;
use dalle2_core::image::{RgbImage, to_tensor};
use dalle2_core::metrics::similarity_matrix;
use dalle2_core::{ConfigError, Error, ImageEncoder, Result};

use crate::Pipeline;

/// What a filter says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is wrong.
    Allow,
    /// What is wrong, for the error that the caller gets.
    Refuse(String),
}

/// Looks at captions before anything is drawn for them.
pub trait PromptFilter: fmt::Debug + Send + Sync {
    /// Whether a caption may be drawn.
    ///
    /// # Errors
    /// When the filter cannot tell; nothing is drawn then.
    fn check(&self, caption: &str) -> Result<Verdict>;
}

/// Looks at images before they are handed out.
pub trait ImageFilter: fmt::Debug + Send + Sync {
    /// Whether each of the images may be handed out, in their order.
    ///
    /// # Errors
    /// When the filter cannot tell; nothing is handed out then.
    fn check(&self, images: &[RgbImage]) -> Result<Vec<Verdict>>;
}

/// Refuses captions that hold one of a list of words or phrases, whole and in any case.
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
    /// A list of words and phrases.
    ///
    /// # Errors
    /// When one of them has no letter or digit, since it would refuse everything.
    pub fn new(phrases: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Self> {
        let split = |phrase: &str| match words(phrase) {
            empty if empty.is_empty() => {
                Err(ConfigError::new("phrases", format!("{phrase:?}"), "must have a letter or a digit").into())
            }
            words => Ok(words),
        };
        Ok(Self { phrases: phrases.into_iter().map(|phrase| split(phrase.as_ref())).collect::<Result<_>>()? })
    }
}

impl PromptFilter for BlockList {
    fn check(&self, caption: &str) -> Result<Verdict> {
        let caption = words(caption);
        let found = self.phrases.iter().find(|phrase| caption.windows(phrase.len()).any(|part| part == **phrase));
        Ok(match found {
            Some(phrase) => Verdict::Refuse(format!("the caption holds {:?}", phrase.join(" "))),
            None => Verdict::Allow,
        })
    }
}

/// Lower-case words without what stands between them.
fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// Refuses images that CLIP finds too similar to one of a list of descriptions.
#[derive(Debug, Clone)]
pub struct SimilarityFilter {
    encoder: Arc<dyn ImageEncoder>,
    descriptions: Vec<String>,
    embeddings: Tensor<2>,
    threshold: f64,
    device: Device,
}

impl SimilarityFilter {
    /// Compares with the encoders of a pipeline. `threshold` is the cosine from which an image is refused; what is right
    /// depends on the CLIP and must be measured.
    ///
    /// # Errors
    /// When the pipeline has no image encoder, there is no description or one is too long, or the threshold is not in −1 to
    /// 1.
    pub fn new(pipeline: &Pipeline, descriptions: &[&str], threshold: f64) -> Result<Self> {
        let Some(encoder) = pipeline.image_encoder.clone() else {
            return Err(Error::Mismatch("a similarity filter needs a pipeline with an image encoder".into()));
        };
        if !(-1.0..=1.0).contains(&threshold) {
            return Err(ConfigError::new("threshold", threshold, "must be between -1 and 1").into());
        }
        if descriptions.is_empty() {
            return Err(ConfigError::new("descriptions", "[]", "must name what is to be refused").into());
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
            // A cosine that is not a number is no reason to hand an image out.
            let harmless = |cosine: f32| f64::from(cosine) < self.threshold;
            let found = cosines.iter().position(|&cosine| !harmless(cosine));
            found.map_or(Verdict::Allow, |i| {
                Verdict::Refuse(format!("similar to {:?} by {:.3}", self.descriptions[i], cosines[i]))
            })
        };
        Ok(cosines.chunks_exact(self.descriptions.len()).map(verdict).collect())
    }
}

impl Pipeline {
    /// Installs a filter that every caption passes before anything is drawn for it. Filters run in the order in which they
    /// are installed.
    pub fn with_prompt_filter(mut self, filter: impl PromptFilter + 'static) -> Self {
        self.prompt_filters.push(Arc::new(filter));
        self
    }

    /// Installs a filter that every finished image passes before it is handed out. Previews are not filtered.
    pub fn with_image_filter(mut self, filter: impl ImageFilter + 'static) -> Self {
        self.image_filters.push(Arc::new(filter));
        self
    }

    /// Asks the prompt filters.
    ///
    /// # Errors
    /// [`Error::Refused`] with the first filter's reason.
    pub(crate) fn check_caption(&self, caption: &str) -> Result<()> {
        for filter in &self.prompt_filters {
            if let Verdict::Refuse(reason) = filter.check(caption)? {
                return Err(Error::Refused(reason));
            }
        }
        Ok(())
    }

    /// Asks the image filters about images, of which the first is image `first` of the request.
    ///
    /// # Errors
    /// [`Error::Refused`] with the number of the image and the first filter's reason.
    pub(crate) fn check_images(&self, images: &[RgbImage], first: usize) -> Result<()> {
        for filter in &self.image_filters {
            let verdicts = filter.check(images)?;
            if verdicts.len() != images.len() {
                let message = format!("an image filter gave {} verdicts on {} images", verdicts.len(), images.len());
                return Err(Error::Mismatch(message));
            }
            for (i, verdict) in verdicts.into_iter().enumerate() {
                if let Verdict::Refuse(reason) = verdict {
                    return Err(Error::Refused(format!("image {}: {reason}", first + i)));
                }
            }
        }
        Ok(())
    }
}
