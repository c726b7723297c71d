//! Requests for images.

use burn::prelude::*;
use dalle2_core::image::RgbImage;
use dalle2_core::{ConfigError, DiffusionOptions, Error, PriorOptions, Result, UpsamplerOptions};

use crate::Stage;

/// Maximum number of images per request.
pub(crate) const MAX_IMAGES: usize = 10_000;

/// The first stage of a generation.
#[allow(clippy::large_enum_variant, reason = "one value lives per request")]
#[derive(Debug, Clone, Default)]
pub(crate) enum Start {
    /// The prior samples an embedding for the caption.
    #[default]
    Caption,
    /// The decoder reads these embeddings `[1 or n, D]`.
    Embeddings(Tensor<2>),
    /// The decoder reads embeddings that an operation computes after the request has been checked.
    Computed,
    /// The decoder reads the embedding of this image.
    EmbeddingOf(RgbImage),
    /// The upsamplers enlarge these images, one or n.
    Images(Vec<RgbImage>),
}

/// A request for images of a caption, or for variations of an image. Unset options are the model's defaults.
///
/// ```
/// use dalle2::{GenerateRequest, RgbImage};
///
/// let request = GenerateRequest::new("a red apple").num_images(4).seed(7).decoder_steps(50).guidance(4.0);
/// let variations = GenerateRequest::variation_of(RgbImage::new(64, 64)).caption("a green apple").num_images(4);
/// ```
///
/// A generation may start and stop at any stage: [`embeddings`](Self::embeddings) and [`low_images`](Self::low_images)
/// start after the prior and after the decoder, [`stop_after`](Self::stop_after) stops early.
#[derive(Debug, Clone)]
pub struct GenerateRequest {
    pub(crate) caption: String,
    pub(crate) negative_caption: String,
    pub(crate) start: Start,
    pub(crate) stop_after: Option<Stage>,
    pub(crate) size: Option<usize>,
    pub(crate) num_images: usize,
    pub(crate) seed: Option<u64>,
    /// One seed per image, in place of consecutive ones.
    pub(crate) seeds: Option<Vec<u64>>,
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

/// One image without a caption, for a generation that starts from embeddings or images.
impl Default for GenerateRequest {
    fn default() -> Self {
        Self::new("")
    }
}

impl GenerateRequest {
    /// Requests one image of `caption` with the model's defaults and a random seed.
    pub fn new(caption: impl Into<String>) -> Self {
        Self {
            caption: caption.into(),
            negative_caption: String::new(),
            start: Start::default(),
            stop_after: None,
            size: None,
            num_images: 1,
            seed: None,
            seeds: None,
            batch_size: 4,
            prior: PriorOptions::default(),
            decoder: DiffusionOptions::default(),
            upsampler: UpsamplerOptions::default(),
            upsampler_overrides: Vec::new(),
            max_upsamplers: None,
        }
    }

    /// Requests one variation of an image, without a caption, from random noise (DALL·E 2, section 3.1).
    /// [`Pipeline::vary`](crate::Pipeline::vary) can start from the image's own noise.
    pub fn variation_of(image: RgbImage) -> Self {
        Self::new("").embedding_of(image)
    }

    /// Sets the caption.
    pub fn caption(mut self, caption: impl Into<String>) -> Self {
        self.caption = caption.into();
        self
    }

    /// Sets the caption that guidance moves away from, in place of the empty one. A stage must have guidance, or the
    /// request is refused.
    pub fn negative_caption(mut self, caption: impl Into<String>) -> Self {
        self.negative_caption = caption.into();
        self
    }

    /// Starts from the embedding of an image in place of the prior's. The decoder still reads the caption.
    pub fn embedding_of(mut self, image: RgbImage) -> Self {
        self.start = Start::EmbeddingOf(image);
        self
    }

    /// Starts from image embeddings `[1 or num_images, D]` in CLIP's space in place of the prior's. The decoder still
    /// reads the caption.
    pub fn embeddings(mut self, embeddings: Tensor<2>) -> Self {
        self.start = Start::Embeddings(embeddings);
        self
    }

    /// Starts from small images, one or `num_images` of one size, which the upsamplers enlarge. The caption is not read.
    pub fn low_images(mut self, images: impl Into<Vec<RgbImage>>) -> Self {
        self.start = Start::Images(images.into());
        self
    }

    /// Stops after a stage: after the prior the result has embeddings and no images.
    pub fn stop_after(mut self, stage: Stage) -> Self {
        self.stop_after = Some(stage);
        self
    }

    /// Sets the side of the images in pixels, which must be the decoder's or an upsampler's.
    pub fn size(mut self, pixels: usize) -> Self {
        self.size = Some(pixels);
        self
    }

    /// Sets the number of images, from 1 to 10,000.
    pub fn num_images(mut self, n: usize) -> Self {
        self.num_images = n;
        self.seeds = None;
        self
    }

    /// Sets the seed of the first image; image i has `seed + i`. A request for that seed alone gives the same image, up to
    /// the rounding of another batch size.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self.seeds = None;
        self
    }

    /// Sets the seed of each image, and the number of images.
    pub fn seeds(mut self, seeds: impl IntoIterator<Item = u64>) -> Self {
        let seeds: Vec<u64> = seeds.into_iter().collect();
        self.num_images = seeds.len();
        self.seed = seeds.first().copied();
        self.seeds = Some(seeds);
        self
    }

    /// Sets the number of images that are sampled together, 4 by default. Larger batches are faster, take more memory, and
    /// change images by rounding only.
    pub fn batch_size(mut self, n: usize) -> Self {
        self.batch_size = n;
        self
    }

    /// Sets the sampling steps of the prior.
    pub fn prior_steps(mut self, steps: usize) -> Self {
        self.prior.steps = Some(steps);
        self
    }

    /// Sets the guidance scale of the prior; 1 disables guidance.
    pub fn prior_guidance(mut self, scale: f64) -> Self {
        self.prior.guidance = Some(scale);
        self
    }

    /// Sets the prior's candidates per image; the one closest to the caption's embedding is decoded.
    pub fn prior_candidates(mut self, n: usize) -> Self {
        self.prior.candidates = Some(n);
        self
    }

    /// Sets the temperature of an autoregressive prior; 0 selects the most probable values. A diffusion prior refuses it.
    pub fn prior_temperature(mut self, temperature: f64) -> Self {
        self.prior.temperature = Some(temperature);
        self
    }

    /// Sets the nucleus of an autoregressive prior, in (0, 1]. A diffusion prior refuses it.
    pub fn prior_top_p(mut self, share: f64) -> Self {
        self.prior.top_p = Some(share);
        self
    }

    /// Sets the sampling steps of the decoder.
    pub fn decoder_steps(mut self, steps: usize) -> Self {
        self.decoder.steps = Some(steps);
        self
    }

    /// Sets the guidance scale of the decoder; 1 disables guidance.
    pub fn guidance(mut self, scale: f64) -> Self {
        self.decoder.guidance = Some(scale);
        self
    }

    /// Sets the sampling steps of every upsampler.
    pub fn upsampler_steps(mut self, steps: usize) -> Self {
        self.upsampler.steps = Some(steps);
        self
    }

    /// Runs only the first `n` upsamplers; 0 gives the decoder's images.
    pub fn max_upsamplers(mut self, n: usize) -> Self {
        self.max_upsamplers = Some(n);
        self
    }

    /// Replaces all options of the prior.
    pub fn prior_options(mut self, options: PriorOptions) -> Self {
        self.prior = options;
        self
    }

    /// Replaces all options of the decoder.
    pub fn decoder_options(mut self, options: DiffusionOptions) -> Self {
        self.decoder = options;
        self
    }

    /// Replaces all options of the upsamplers.
    pub fn upsampler_options(mut self, options: UpsamplerOptions) -> Self {
        self.upsampler = options;
        self
    }

    /// Replaces all options of one upsampler, counted from 0.
    pub fn upsampler_options_of(mut self, index: usize, options: UpsamplerOptions) -> Self {
        self.upsampler_overrides.retain(|(other, _)| *other != index);
        self.upsampler_overrides.push((index, options));
        self
    }

    /// Fills in a random seed if there is none, so that all stages of an operation agree on it.
    pub(crate) fn with_seed(mut self) -> Self {
        self.seed.get_or_insert_with(|| u64::from(rand::random::<u32>()));
        self
    }

    /// The seed of the first image.
    pub(crate) fn first_seed(&self) -> u64 {
        self.seed.unwrap_or_default()
    }

    /// Requests `n` images that all start from embeddings to be computed and share the first seed.
    pub(crate) fn frames(mut self, n: usize) -> Self {
        let seed = self.first_seed();
        self.start = Start::Computed;
        self.seeds(std::iter::repeat_n(seed, n))
    }

    /// Whether the request starts from a caption and has none.
    pub(crate) fn lacks_caption(&self) -> bool {
        matches!(self.start, Start::Caption) && self.caption.trim().is_empty()
    }

    /// Refuses a request that starts from embeddings or images: an operation computes its own.
    pub(crate) fn without_start(self) -> Result<Self> {
        let start = match self.start {
            Start::Caption => return Ok(self),
            Start::Embeddings(_) | Start::Computed => "embeddings",
            Start::EmbeddingOf(_) => "the embedding of an image",
            Start::Images(_) => "images to enlarge",
        };
        Err(Error::Input(format!("this operation provides the embeddings, but the request starts from {start}")))
    }

    /// The options of an upsampler.
    pub(crate) fn options_of(&self, index: usize) -> &UpsamplerOptions {
        let overridden = self.upsampler_overrides.iter().find(|(other, _)| *other == index);
        overridden.map_or(&self.upsampler, |(_, options)| options)
    }

    /// The options of every upsampler, mutably.
    pub(crate) fn all_upsampler_options(&mut self) -> impl Iterator<Item = &mut UpsamplerOptions> {
        self.upsampler_overrides.iter_mut().map(|(_, options)| options).chain([&mut self.upsampler])
    }

    /// The seed of each image.
    pub(crate) fn image_seeds(&self) -> Result<Vec<u64>> {
        if let Some(seeds) = &self.seeds {
            return Ok(seeds.clone());
        }
        let first = self.first_seed();
        let Some(last) = first.checked_add(self.num_images as u64 - 1) else {
            let expected = format!("must be at most 2^64 − {}: image i has seed + i", self.num_images);
            return Err(ConfigError::new("seed", first, expected).into());
        };
        Ok((first..=last).collect())
    }

    /// Checks the fields that do not depend on a pipeline.
    pub(crate) fn validate(&self) -> Result<()> {
        if self.lacks_caption() {
            return Err(ConfigError::new("caption", format!("{:?}", self.caption), "must be a description").into());
        }
        if !(1..=MAX_IMAGES).contains(&self.num_images) {
            let expected = format!("must be between 1 and {MAX_IMAGES}");
            return Err(ConfigError::new("num_images", self.num_images, expected).into());
        }
        if self.batch_size == 0 {
            return Err(ConfigError::new("batch_size", 0, "must be at least 1").into());
        }
        let (name, given) = match &self.start {
            Start::Caption | Start::EmbeddingOf(_) | Start::Computed => return Ok(()),
            Start::Embeddings(embeddings) => ("embeddings", embeddings.dims()[0]),
            Start::Images(images) => ("images", images.len()),
        };
        if given != 1 && given != self.num_images {
            let n = self.num_images;
            return Err(Error::Input(format!("{given} {name} to start from, for {n} images: give 1 or {n}")));
        }
        Ok(())
    }
}
