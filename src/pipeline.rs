//! The pipeline.

use std::fmt;
use std::sync::Arc;

use burn::prelude::*;
use dalle2_core::image::{RgbImage, fit_square, to_tensor};
use dalle2_core::{Decoder, Error, ImageEncoder, Prior, Result, TextEncoder, Upsampler};
use serde_json::{Map, Value};

use crate::filter::Verdict;
use crate::manipulate::Generate;
use crate::plan::{CheckedRequest, Item, PlannedStage, check_image};
use crate::request::Start;
use crate::run::Inputs;
use crate::{Controls, Event, GenerateRequest, Generation, ImageFilter, Operation, PipelineBuilder, PromptFilter};

/// The stages from a caption to an image: text encoder, prior, decoder, upsamplers. A pipeline without a prior makes
/// variations of images only.
///
/// Clones share the parts, and generating does not change them, so threads can share a pipeline. One generation uses all
/// cores; several at once gain little over one after another.
#[derive(Clone)]
pub struct Pipeline {
    pub(crate) text_encoder: Arc<dyn TextEncoder>,
    pub(crate) image_encoder: Option<Arc<dyn ImageEncoder>>,
    pub(crate) prior: Option<Arc<dyn Prior>>,
    pub(crate) decoder: Arc<dyn Decoder>,
    pub(crate) upsamplers: Vec<Arc<dyn Upsampler>>,
    pub(crate) device: Device,
    /// `model_index.json` of the diffusers directory that the pipeline was loaded from, to be written back unchanged.
    pub(crate) index: Option<Arc<Map<String, Value>>>,
    pub(crate) prompt_filters: Vec<Arc<dyn PromptFilter>>,
    pub(crate) image_filters: Vec<Arc<dyn ImageFilter>>,
}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let upsamplers: Vec<&str> = self.upsamplers.iter().map(|upsampler| upsampler.class_name()).collect();
        f.debug_struct("Pipeline")
            .field("text_encoder", &self.text_encoder.class_name())
            .field("image_encoder", &self.image_encoder.as_ref().map(|part| part.class_name()))
            .field("prior", &self.prior.as_ref().map(|part| part.class_name()))
            .field("decoder", &self.decoder.class_name())
            .field("upsamplers", &upsamplers)
            .field("filters", &(self.prompt_filters.len() + self.image_filters.len()))
            .finish_non_exhaustive()
    }
}

/// # Parts
impl Pipeline {
    /// Starts a pipeline of given parts.
    pub fn builder() -> PipelineBuilder {
        PipelineBuilder::default()
    }

    /// Returns a builder with this pipeline's parts and filters, to replace some of them.
    ///
    /// ```no_run
    /// # fn with_prior(pipeline: dalle2::Pipeline, prior: impl dalle2::Prior + 'static) -> dalle2::Result<()> {
    /// let pipeline = pipeline.to_builder().prior(prior).build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn to_builder(&self) -> PipelineBuilder {
        PipelineBuilder::from_pipeline(self.clone())
    }

    /// The text encoder.
    pub fn text_encoder(&self) -> &Arc<dyn TextEncoder> {
        &self.text_encoder
    }

    /// The image encoder.
    pub fn image_encoder(&self) -> Option<&Arc<dyn ImageEncoder>> {
        self.image_encoder.as_ref()
    }

    /// The prior.
    pub fn prior(&self) -> Option<&Arc<dyn Prior>> {
        self.prior.as_ref()
    }

    /// The decoder.
    pub fn decoder(&self) -> &Arc<dyn Decoder> {
        &self.decoder
    }

    /// The upsamplers in their order.
    pub fn upsamplers(&self) -> impl ExactSizeIterator<Item = &Arc<dyn Upsampler>> {
        self.upsamplers.iter()
    }

    /// The device of the parts.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Side of the images in pixels.
    pub fn image_size(&self) -> usize {
        self.upsamplers.iter().fold(self.decoder.image_size(), |size, upsampler| size * upsampler.factor())
    }

    /// Installs a filter that every caption must pass before generation, negative captions included. Filters run in the
    /// order of their installation.
    pub fn with_prompt_filter(mut self, filter: impl PromptFilter + 'static) -> Self {
        self.prompt_filters.push(Arc::new(filter));
        self
    }

    /// Installs a filter that every finished image must pass. Previews are not filtered.
    pub fn with_image_filter(mut self, filter: impl ImageFilter + 'static) -> Self {
        self.image_filters.push(Arc::new(filter));
        self
    }
}

/// # Generation
impl Pipeline {
    /// Generates images for a caption or a request.
    ///
    /// # Errors
    /// If the caption is empty or too long, or an option is out of range.
    pub fn generate(&self, request: impl Into<GenerateRequest>) -> Result<Generation> {
        self.generation(request).run()
    }

    /// Generates images and calls `hook` after every step. An error of the hook stops the generation and is returned;
    /// [`Error::Cancelled`] cancels it without a result.
    ///
    /// # Errors
    /// As [`Pipeline::generate`], and the hook's own.
    pub fn generate_with(
        &self,
        request: impl Into<GenerateRequest>,
        hook: impl FnMut(Event<'_>) -> Result<()>,
    ) -> Result<Generation> {
        self.generation(request).hook(hook).run()
    }

    /// Prepares a generation, to which a hook and a noise source can be added.
    pub fn generation(&self, request: impl Into<GenerateRequest>) -> Operation<'_, Generate> {
        Operation::new(self, Generate).request(request)
    }

    /// Generates the images of several requests. Requests that start from captions and differ only in caption and seeds
    /// share batches, which is faster than one after another and changes images by rounding only.
    ///
    /// # Errors
    /// As [`Pipeline::generate`] for the first request that fails; all are checked before the first stage.
    pub fn generate_many(
        &self,
        requests: &[GenerateRequest],
        hook: impl FnMut(Event<'_>) -> Result<()>,
    ) -> Result<Vec<Generation>> {
        let mut controls = Controls::new().hook(hook);
        let checked = requests.iter().map(|request| self.check(request.clone(), None)).collect::<Result<Vec<_>>>()?;
        checked.iter().try_for_each(|checked| self.filter_captions(checked))?;
        let mut groups: Vec<(CheckedRequest, Vec<usize>)> = Vec::new();
        for checked in checked {
            let n = checked.items.len();
            match groups.last_mut() {
                Some((group, sizes)) if group.request.shares_batches_with(&checked.request) => {
                    group.append(checked);
                    sizes.push(n);
                }
                _ => groups.push((checked, vec![n])),
            }
        }
        let mut generations = Vec::with_capacity(requests.len());
        for (mut group, sizes) in groups {
            if sizes.len() > 1 {
                group.request.num_images = group.items.len();
                group.stages = self.stages_of(&group.request, group.upsamplers, None)?;
            }
            let generation = self.execute(&group, Inputs::default(), &mut controls)?;
            generations.extend(generation.split(&sizes));
        }
        Ok(generations)
    }

    /// Checks a request completely, captions, filters and numbers of tokens included, without generating.
    ///
    /// # Errors
    /// As [`Pipeline::generate`].
    pub fn validate(&self, request: &GenerateRequest) -> Result<()> {
        let checked = self.check(request.clone(), None)?;
        self.filter_captions(&checked)?;
        if matches!(request.start, Start::Images(_)) {
            return Ok(());
        }
        let limit = self.text_encoder.context_length();
        for caption in [&request.caption, &request.negative_caption] {
            let tokens = self.text_encoder.count_tokens(caption)?;
            if tokens > limit {
                return Err(Error::CaptionTooLong { caption: caption.clone(), tokens, limit });
            }
        }
        Ok(())
    }

    /// Lists the stages of a request and their steps over all batches.
    ///
    /// # Errors
    /// If an option is out of range.
    pub fn plan(&self, request: &GenerateRequest) -> Result<Vec<PlannedStage>> {
        Ok(self.check(request.clone(), None)?.stages)
    }

    /// Drops words from the end of a caption until the text encoder can read it.
    ///
    /// # Errors
    /// If the first word alone is too long.
    pub fn truncate_caption(&self, caption: &str) -> Result<String> {
        let limit = self.text_encoder.context_length();
        let words: Vec<&str> = caption.split_whitespace().collect();
        if self.text_encoder.count_tokens(caption)? <= limit {
            return Ok(caption.to_owned());
        }
        let (mut fits, mut too_long) = (0, words.len());
        while too_long - fits > 1 {
            let middle = fits.midpoint(too_long);
            if self.text_encoder.count_tokens(&words[..middle].join(" "))? <= limit {
                fits = middle;
            } else {
                too_long = middle;
            }
        }
        if fits == 0 {
            let tokens = self.text_encoder.count_tokens(caption)?;
            return Err(Error::CaptionTooLong { caption: caption.to_owned(), tokens, limit });
        }
        Ok(words[..fits].join(" "))
    }

    /// Embeds the central square of an image in CLIP's space, `[1, D]`.
    ///
    /// # Errors
    /// If the pipeline has no image encoder or the image is empty.
    pub fn embed_image(&self, image: &RgbImage) -> Result<Tensor<2>> {
        check_image(image)?;
        self.encode_image(&fit_square(image, image.width().min(image.height())))
    }

    /// Embeds a caption in CLIP's space, `[1, D]`.
    ///
    /// # Errors
    /// If the caption is too long.
    pub fn embed_text(&self, caption: &str) -> Result<Tensor<2>> {
        Ok(self.text_encoder.encode(&[caption])?.pooled)
    }

    /// Embeds an image as it is.
    pub(crate) fn encode_image(&self, image: &RgbImage) -> Result<Tensor<2>> {
        let Some(encoder) = &self.image_encoder else {
            return Err(Error::Mismatch("an image must be embedded, but the pipeline has no image encoder".into()));
        };
        encoder.encode(to_tensor(std::slice::from_ref(image), &self.device)?)
    }

    /// Runs the prompt filters on the captions that the request reads.
    pub(crate) fn filter_captions(&self, checked: &CheckedRequest) -> Result<()> {
        if matches!(checked.request.start, Start::Images(_)) && checked.captions.iter().all(String::is_empty) {
            return Ok(());
        }
        checked.captions.iter().try_for_each(|caption| self.filter_caption(caption))?;
        match checked.request.negative_caption.as_str() {
            "" => Ok(()),
            negative => self.filter_caption(negative),
        }
    }

    /// Runs the prompt filters.
    ///
    /// # Errors
    /// [`Error::Refused`] with the first filter's reason.
    pub(crate) fn filter_caption(&self, caption: &str) -> Result<()> {
        for filter in &self.prompt_filters {
            if let Verdict::Refuse(reason) = filter.check(caption)? {
                return Err(Error::Refused(reason));
            }
        }
        Ok(())
    }

    /// Runs the image filters on images; the first has index `first` in the request.
    ///
    /// # Errors
    /// [`Error::Refused`] with the index of the image and the first filter's reason.
    pub(crate) fn filter_images(&self, images: &[RgbImage], first: usize) -> Result<()> {
        for filter in &self.image_filters {
            let verdicts = filter.check(images)?;
            if verdicts.len() != images.len() {
                let message = format!("an image filter gave {} verdicts for {} images", verdicts.len(), images.len());
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

impl CheckedRequest {
    /// Adds the images of a request that shares batches with this one.
    fn append(&mut self, other: Self) {
        let offset = self.captions.len();
        self.captions.extend(other.captions);
        self.items.extend(other.items.into_iter().map(|item| Item { caption: item.caption + offset, ..item }));
    }
}

impl GenerateRequest {
    /// Whether the requests differ in caption, seeds and number of images only.
    fn shares_batches_with(&self, other: &Self) -> bool {
        let start = |request: &Self| matches!(request.start, Start::Caption);
        let settings = |request: &Self| {
            let Self { stop_after, size, batch_size, max_upsamplers, .. } = request;
            (*stop_after, *size, *batch_size, *max_upsamplers)
        };
        start(self)
            && start(other)
            && settings(self) == settings(other)
            && self.negative_caption == other.negative_caption
            && self.prior == other.prior
            && self.decoder == other.decoder
            && self.upsampler == other.upsampler
            && self.upsampler_overrides == other.upsampler_overrides
    }
}

impl Generation {
    /// Splits the images of several requests; each part has the times of all.
    fn split(self, sizes: &[usize]) -> Vec<Self> {
        let mut first = 0;
        let part = |n: &usize| {
            let rows = first..first + n;
            first += n;
            Self {
                images: self.images.get(rows.clone()).map(<[RgbImage]>::to_vec).unwrap_or_default(),
                embeddings: self.embeddings.as_ref().map(|all| all.clone().slice_dim(0, rows.clone())),
                seeds: self.seeds[rows].to_vec(),
                times: self.times.clone(),
            }
        };
        sizes.iter().map(part).collect()
    }
}
