//! What is asked of a pipeline.

use burn::prelude::*;
use dalle2_core::image::RgbImage;
use dalle2_core::{ConfigError, DiffusionOptions, Error, PriorOptions, Result, UpsamplerOptions};

use crate::Stage;

/// Most images of one request.
const MAX_IMAGES: usize = 10_000;

/// Where a generation begins.
#[allow(clippy::large_enum_variant, reason = "one value lives per request")]
#[derive(Debug, Clone, Default)]
pub(crate) enum Start {
    /// The prior draws an embedding for the caption.
    #[default]
    Caption,
    /// The decoder draws images for these embeddings `[1 or n, D]`.
    Embeddings(Tensor<2>),
    /// The decoder draws images for the embedding of this one.
    EmbeddingOf(RgbImage),
    /// The upsamplers enlarge these images, one or n.
    Images(Vec<RgbImage>),
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
///
/// A generation may begin and end at any stage: [`embeddings`](Self::embeddings) and [`from_images`](Self::from_images)
/// enter after the prior and after the decoder, [`stop_after`](Self::stop_after) leaves early.
#[derive(Debug, Clone)]
pub struct GenerateRequest {
    pub(crate) caption: String,
    pub(crate) negative_caption: String,
    pub(crate) start: Start,
    pub(crate) stop_after: Option<Stage>,
    pub(crate) size: Option<usize>,
    pub(crate) num_images: usize,
    pub(crate) seed: Option<u64>,
    pub(crate) batch_size: usize,
    pub(crate) prior: PriorOptions,
    pub(crate) decoder: DiffusionOptions,
    pub(crate) upsampler: UpsamplerOptions,
    pub(crate) upsampler_overrides: Vec<(usize, UpsamplerOptions)>,
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

/// One image without a caption, for a generation that begins with embeddings or images.
impl Default for GenerateRequest {
    fn default() -> Self {
        Self::new("")
    }
}

impl GenerateRequest {
    /// One image of `caption` with the model's defaults and a seed drawn at random.
    pub fn new(caption: impl Into<String>) -> Self {
        Self {
            caption: caption.into(),
            negative_caption: String::new(),
            start: Start::default(),
            stop_after: None,
            size: None,
            num_images: 1,
            seed: None,
            batch_size: 4,
            prior: PriorOptions::default(),
            decoder: DiffusionOptions::default(),
            upsampler: UpsamplerOptions::default(),
            upsampler_overrides: Vec::new(),
            max_upsamplers: None,
        }
    }

    /// One variation of an image, without a caption, drawn from noise (DALL·E 2, section 3.1). `Pipeline::variations` can
    /// begin with the image's own noise.
    pub fn variation_of(image: RgbImage) -> Self {
        Self::new("").embedding_of(image)
    }

    /// Begins with the embedding of an image, which the pipeline's image encoder computes; the prior is not asked. The
    /// decoder still reads the caption, which may be empty.
    pub fn embedding_of(mut self, image: RgbImage) -> Self {
        self.start = Start::EmbeddingOf(image);
        self
    }

    /// The caption.
    pub fn caption(&self) -> &str {
        &self.caption
    }

    /// What guidance moves away from, instead of no caption at all. It needs a guidance scale above 1 to have an effect.
    pub fn negative_caption(mut self, caption: impl Into<String>) -> Self {
        self.negative_caption = caption.into();
        self
    }

    /// Begins with image embeddings `[1 or num_images, D]` in CLIP's space; the prior is not asked. The decoder still reads
    /// the caption, which may be empty.
    pub fn embeddings(mut self, embeddings: Tensor<2>) -> Self {
        self.start = Start::Embeddings(embeddings);
        self
    }

    /// Begins with images, one or `num_images` of one size, which the upsamplers enlarge; the caption is not read.
    pub fn from_images(mut self, images: impl Into<Vec<RgbImage>>) -> Self {
        self.start = Start::Images(images.into());
        self
    }

    /// Ends after this stage: after the prior, or what takes its place, there are embeddings and no images.
    pub fn stop_after(mut self, stage: Stage) -> Self {
        self.stop_after = Some(stage);
        self
    }

    /// Side of the images in pixels: as many upsamplers run as it takes. It must be the side of the decoder's images or of
    /// one of the upsamplers'.
    pub fn size(mut self, pixels: usize) -> Self {
        self.size = Some(pixels);
        self
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
    pub fn prior_options(mut self, options: PriorOptions) -> Self {
        self.prior = options;
        self
    }

    /// All options of the decoder at once.
    pub fn decoder_options(mut self, options: DiffusionOptions) -> Self {
        self.decoder = options;
        self
    }

    /// All options of the upsamplers at once.
    pub fn upsampler_options(mut self, options: UpsamplerOptions) -> Self {
        self.upsampler = options;
        self
    }

    /// All options of one upsampler, counted from 0, in place of those for all.
    pub fn upsampler_options_of(mut self, index: usize, options: UpsamplerOptions) -> Self {
        self.upsampler_overrides.retain(|(other, _)| *other != index);
        self.upsampler_overrides.push((index, options));
        self
    }

    /// The same request with a seed: its own, or one drawn at random, so that all that is drawn for it agrees.
    pub(crate) fn settled(mut self) -> Self {
        self.seed.get_or_insert_with(|| u64::from(rand::random::<u32>()));
        self
    }

    /// The same request, if it does not begin with embeddings or images: a manipulation brings its own.
    pub(crate) fn without_start(self) -> Result<Self> {
        let given = match self.start {
            Start::Caption => return Ok(self),
            Start::Embeddings(_) => "embeddings",
            Start::EmbeddingOf(_) => "the embedding of an image",
            Start::Images(_) => "images to enlarge",
        };
        let message = format!("this manipulation begins with what it is given, but the request begins with {given}");
        Err(Error::Input(message))
    }

    /// The options of an upsampler.
    pub(crate) fn options_of(&self, index: usize) -> &UpsamplerOptions {
        let own = self.upsampler_overrides.iter().find(|(other, _)| *other == index);
        own.map_or(&self.upsampler, |(_, options)| options)
    }

    /// Checks what can be checked without a pipeline.
    pub(crate) fn validate(&self) -> Result<()> {
        if matches!(self.start, Start::Caption) && self.caption.trim().is_empty() {
            return Err(ConfigError::new("caption", format!("{:?}", self.caption), "say what to draw").into());
        }
        if !(1..=MAX_IMAGES).contains(&self.num_images) {
            let expected = format!("must be between 1 and {MAX_IMAGES}");
            return Err(ConfigError::new("num_images", self.num_images, expected).into());
        }
        if self.batch_size == 0 {
            return Err(ConfigError::new("batch_size", 0, "must be at least 1").into());
        }
        let (what, given) = match &self.start {
            Start::Caption | Start::EmbeddingOf(_) => return Ok(()),
            Start::Embeddings(embeddings) => ("embeddings", embeddings.dims()[0]),
            Start::Images(images) => ("images", images.len()),
        };
        match given == 1 || given == self.num_images {
            true => Ok(()),
            false => {
                let n = self.num_images;
                Err(Error::Input(format!("{given} {what} to begin with, for {n} images: give 1 or {n}")))
            }
        }
    }
}
