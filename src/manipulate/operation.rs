//! The builder of every operation on a pipeline.

use dalle2_core::diffusion::NoiseSource;
use dalle2_core::image::{Mask, RgbImage};
use dalle2_core::{EmbeddingPca, Result};

use super::{Borders, Inpaint, Interpolate, Invert, Mix, Outpaint, PcaReconstructions, Source, TextDiff, Vary};
use crate::run::Inputs;
use crate::{Controls, Event, GenerateRequest, Generation, Pipeline, Stage};

/// An operation of the kind `K` on a pipeline. It has the common settings of a [`GenerateRequest`] and the settings of its
/// kind; its method `run` executes it.
///
/// ```no_run
/// use dalle2::{Device, Mask, Pipeline, RgbImage};
///
/// # fn edit(pipeline: &Pipeline, photo: &RgbImage, mask: &Mask) -> dalle2::Result<()> {
/// let fills = pipeline.inpaint(photo, mask).caption("a green heart").seed(1).num_images(4).run()?;
/// let film = pipeline.interpolate("a red apple", photo).frames(24).decoder_steps(20).run()?;
/// let near = pipeline.vary(photo).eta(0.3).hook(|event| Ok(println!("{:?}", event.overall()))).run()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "an operation does nothing until it is run"]
pub struct Operation<'a, K> {
    pub(super) pipeline: &'a Pipeline,
    pub(super) request: GenerateRequest,
    pub(super) controls: Controls<'a>,
    pub(super) kind: K,
}

impl<'a, K> Operation<'a, K> {
    pub(crate) fn new(pipeline: &'a Pipeline, kind: K) -> Self {
        Self { pipeline, request: GenerateRequest::default(), controls: Controls::new(), kind }
    }

    fn map(mut self, change: impl FnOnce(GenerateRequest) -> GenerateRequest) -> Self {
        self.request = change(self.request);
        self
    }

    /// Replaces all settings of the request.
    pub fn request(self, request: impl Into<GenerateRequest>) -> Self {
        self.map(|_| request.into())
    }

    /// Sets the caption that the decoder reads beside the embedding; none by default.
    pub fn caption(self, caption: impl Into<String>) -> Self {
        self.map(|request| request.caption(caption))
    }

    /// Sets the caption that guidance moves away from.
    pub fn negative_caption(self, caption: impl Into<String>) -> Self {
        self.map(|request| request.negative_caption(caption))
    }

    /// Sets the seed of the first image.
    pub fn seed(self, seed: u64) -> Self {
        self.map(|request| request.seed(seed))
    }

    /// Sets the number of images; operations that generate frames ignore it.
    pub fn num_images(self, n: usize) -> Self {
        self.map(|request| request.num_images(n))
    }

    /// Sets the guidance scale of the decoder.
    pub fn guidance(self, scale: f64) -> Self {
        self.map(|request| request.guidance(scale))
    }

    /// Sets the sampling steps of the decoder.
    pub fn decoder_steps(self, steps: usize) -> Self {
        self.map(|request| request.decoder_steps(steps))
    }

    /// Sets the sampling steps of every upsampler.
    pub fn upsampler_steps(self, steps: usize) -> Self {
        self.map(|request| request.upsampler_steps(steps))
    }

    /// Replaces the hook and the noise source.
    pub fn controls(mut self, controls: Controls<'a>) -> Self {
        self.controls = controls;
        self
    }

    /// Calls `hook` after every evaluation of a network. Its error stops the operation and is returned from it; return
    /// [`Error::Cancelled`](crate::Error::Cancelled) to cancel.
    pub fn hook(mut self, hook: impl FnMut(Event<'_>) -> Result<()> + 'a) -> Self {
        self.controls = self.controls.hook(hook);
        self
    }

    /// Replaces the noise of the seeds by other sources, see [`Controls::noise`].
    pub fn noise(mut self, noise: impl FnMut(Stage, &[u64]) -> Box<dyn NoiseSource> + 'a) -> Self {
        self.controls = self.controls.noise(noise);
        self
    }
}

/// Plain generation.
#[derive(Debug, Clone, Copy)]
pub struct Generate;

impl Operation<'_, Generate> {
    /// Generates the images.
    ///
    /// # Errors
    /// As [`Pipeline::generate`], and the hook's own.
    pub fn run(mut self) -> Result<Generation> {
        let checked = self.pipeline.check(self.request, None)?;
        self.pipeline.execute(&checked, Inputs::default(), &mut self.controls)
    }
}

/// # Operations on images
impl Pipeline {
    /// Generates images that share the content of `image` as CLIP sees it (DALL·E 2, section 3.1).
    ///
    /// There is no guidance unless the request sets a scale or the noise is random.
    pub fn vary(&self, image: &RgbImage) -> Operation<'_, Vary> {
        Operation::new(self, Vary::new(image.clone()))
    }

    /// Generates the frames between two images, captions or embeddings, along the sphere of embeddings and of noise
    /// (DALL·E 2, section 3.2). All frames share the first seed. There is no guidance unless the request sets a scale.
    pub fn interpolate(&self, from: impl Into<Source>, to: impl Into<Source>) -> Operation<'_, Interpolate> {
        Operation::new(self, Interpolate::new(from.into(), to.into()))
    }

    /// Changes an image along the difference of two captions (DALL·E 2, section 3.3); `from` may be empty. There is no
    /// guidance unless the request sets a scale.
    ///
    /// z_d is the direction between the embeddings of `from` and `to`. The image's embedding turns towards z_d on the
    /// sphere, and the decoder starts from the image's own noise.
    pub fn text_diff(
        &self,
        image: &RgbImage,
        from: impl Into<String>,
        to: impl Into<String>,
    ) -> Operation<'_, TextDiff> {
        Operation::new(self, TextDiff::new(image.clone(), from.into(), to.into()))
    }

    /// Generates images of a weighted mixture of images, captions and embeddings.
    ///
    /// The embedding has the direction of Σ wᵢ·zᵢ/|zᵢ| and the weighted mean of the lengths; a negative weight moves away
    /// from its source. The prior samples one embedding per caption.
    pub fn mix(&self, sources: impl IntoIterator<Item = (Source, f64)>) -> Operation<'_, Mix> {
        Operation::new(self, Mix::new(sources.into_iter().collect()))
    }

    /// Fills the edited part of an image and keeps the rest (GLIDE, arXiv 2112.10741, section 2.5; RePaint, arXiv
    /// 2201.09865).
    ///
    /// The caption describes the complete image. Without one, the image itself is embedded. Results have the
    /// size of the model and show the central square of the image; [`at_photo_size`](Operation::at_photo_size) returns the
    /// image at its own size in place of it. The sampler must be DDPM or DDIM; a model with another default uses DDPM.
    pub fn inpaint(&self, image: &RgbImage, mask: &Mask) -> Operation<'_, Inpaint> {
        Operation::new(self, Inpaint::new(image.clone(), mask.clone()))
    }

    /// Extends an image beyond its borders: [`Pipeline::inpaint`] on a [`Canvas`](crate::Canvas), which must be square.
    /// Without a caption, the image without its borders is embedded.
    pub fn outpaint(&self, image: &RgbImage, borders: Borders) -> Operation<'_, Outpaint> {
        Operation::new(self, Outpaint::new(image.clone(), borders))
    }

    /// Reconstructs an image from the first principal components of its embedding (DALL·E 2, section 4), one image for each
    /// number in `components`. The mean embedding provides the other coordinates.
    pub fn pca_reconstructions(
        &self,
        image: &RgbImage,
        pca: &EmbeddingPca,
        components: &[usize],
    ) -> Operation<'_, PcaReconstructions> {
        Operation::new(self, PcaReconstructions::new(image.clone(), pca.clone(), components.to_vec()))
    }

    /// Inverts an image to its embedding and its noise, and measures the reconstruction. The central square is read. There
    /// is no guidance unless the request sets a scale, because guidance makes the inversion inexact.
    pub fn invert(&self, image: &RgbImage) -> Operation<'_, Invert> {
        Operation::new(self, Invert::new(image.clone()))
    }
}
