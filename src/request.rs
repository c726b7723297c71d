//! What is asked of a pipeline.

use dalle2_core::image::RgbImage;
use dalle2_core::{ConfigError, Result, SampleOptions};

/// Most images of one request.
const MAX_IMAGES: usize = 10_000;

/// Where the image embedding comes from that the decoder draws.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum EmbeddingSource {
    /// The prior draws one for the caption, another for each image.
    #[default]
    Prior,
    /// It is the embedding of this image, so what is drawn are variations of it (DALL·E 2, section 3.1).
    Image(RgbImage),
    /// This one, `D` values in CLIP's space.
    Embedding(Vec<f32>),
}

/// A request for images of a caption, or for variations of an image. Whatever is not set is the model's default.
///
/// ```
/// use dalle2::GenerateRequest;
///
/// let request = GenerateRequest::new("a red apple").num_images(4).seed(7).decoder_steps(50).guidance(4.0);
/// assert_eq!(request.caption(), "a red apple");
///
/// let image = dalle2::RgbImage::new(64, 64);
/// let variations = GenerateRequest::variation_of(image).num_images(4);
/// assert_eq!(variations.caption(), "");
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateRequest {
    pub(crate) caption: String,
    pub(crate) source: EmbeddingSource,
    pub(crate) num_images: usize,
    pub(crate) seed: Option<u64>,
    pub(crate) batch_size: usize,
    pub(crate) prior: SampleOptions,
    pub(crate) decoder: SampleOptions,
    pub(crate) upsampler: SampleOptions,
    pub(crate) max_upsamplers: Option<usize>,
}

impl From<&str> for GenerateRequest {
    fn from(caption: &str) -> Self {
        Self::new(caption)
    }
}

impl From<String> for GenerateRequest {
    fn from(caption: String) -> Self {
        Self::new(caption)
    }
}

impl GenerateRequest {
    /// One image of `caption` with the model's defaults and a seed drawn at random.
    pub fn new(caption: impl Into<String>) -> Self {
        Self {
            caption: caption.into(),
            source: EmbeddingSource::Prior,
            num_images: 1,
            seed: None,
            batch_size: 4,
            prior: SampleOptions::default(),
            decoder: SampleOptions::default(),
            upsampler: SampleOptions::default(),
            max_upsamplers: None,
        }
    }

    /// One variation of an image, without a caption.
    pub fn variation_of(image: RgbImage) -> Self {
        Self::new("").embedding_from(EmbeddingSource::Image(image))
    }

    /// Where the image embedding comes from, the prior if not set. With an image or an embedding the caption may be
    /// empty; the decoder reads it beside the embedding.
    pub fn embedding_from(mut self, source: EmbeddingSource) -> Self {
        self.source = source;
        self
    }

    /// The caption.
    pub fn caption(&self) -> &str {
        &self.caption
    }

    /// How many images to draw, at least 1.
    pub fn num_images(mut self, n: usize) -> Self {
        self.num_images = n;
        self
    }

    /// The seed of the first image; image i has `seed + i`, so it can be drawn again alone.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// How many images are drawn at the same time; more is faster and takes more memory. 4 if not set.
    pub fn batch_size(mut self, n: usize) -> Self {
        self.batch_size = n;
        self
    }

    /// Sampling steps of the prior.
    pub fn prior_steps(mut self, steps: usize) -> Self {
        self.prior.steps = Some(steps);
        self
    }

    /// Guidance scale of the prior; 1 is none.
    pub fn prior_guidance(mut self, scale: f64) -> Self {
        self.prior.guidance = Some(scale);
        self
    }

    /// Embeddings that the prior draws per image; the one closest to the caption's is kept.
    pub fn prior_candidates(mut self, n: usize) -> Self {
        self.prior.candidates = Some(n);
        self
    }

    /// Temperature of an autoregressive prior; 0 takes the most probable values. A diffusion prior refuses it.
    pub fn prior_temperature(mut self, temperature: f64) -> Self {
        self.prior.temperature = Some(temperature);
        self
    }

    /// Share of the probability that an autoregressive prior draws from, in (0, 1]. A diffusion prior refuses it.
    pub fn prior_top_p(mut self, share: f64) -> Self {
        self.prior.top_p = Some(share);
        self
    }

    /// Sampling steps of the decoder.
    pub fn decoder_steps(mut self, steps: usize) -> Self {
        self.decoder.steps = Some(steps);
        self
    }

    /// Guidance scale of the decoder; 1 is none.
    pub fn guidance(mut self, scale: f64) -> Self {
        self.decoder.guidance = Some(scale);
        self
    }

    /// Sampling steps of every upsampler.
    pub fn upsampler_steps(mut self, steps: usize) -> Self {
        self.upsampler.steps = Some(steps);
        self
    }

    /// Uses at most the first `n` upsamplers; 0 gives the decoder's own images.
    pub fn max_upsamplers(mut self, n: usize) -> Self {
        self.max_upsamplers = Some(n);
        self
    }

    /// All options of the prior at once.
    pub fn prior_options(mut self, options: SampleOptions) -> Self {
        self.prior = options;
        self
    }

    /// All options of the decoder at once.
    pub fn decoder_options(mut self, options: SampleOptions) -> Self {
        self.decoder = options;
        self
    }

    /// All options of the upsamplers at once.
    pub fn upsampler_options(mut self, options: SampleOptions) -> Self {
        self.upsampler = options;
        self
    }

    /// Checks what can be checked without a pipeline.
    pub(crate) fn validate(&self) -> Result<()> {
        if self.source == EmbeddingSource::Prior && self.caption.trim().is_empty() {
            return Err(ConfigError::new("caption", format!("{:?}", self.caption), "say what to draw").into());
        }
        if !(1..=MAX_IMAGES).contains(&self.num_images) {
            let expected = format!("must be between 1 and {MAX_IMAGES}");
            return Err(ConfigError::new("num_images", self.num_images, expected).into());
        }
        if self.batch_size == 0 {
            return Err(ConfigError::new("batch_size", 0, "must be at least 1").into());
        }
        Ok(())
    }
}
