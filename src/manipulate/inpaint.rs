//! Inpainting and outpainting.

use burn::prelude::*;
use dalle2_core::diffusion::{Resampling, Sampler};
use dalle2_core::image::{Mask, RgbImage, center_crop, fit_square, to_tensor};
use dalle2_core::{ConfigError, Error, Inpainting, Result};

use super::region::{Region, without_hole};
use super::{Borders, Canvas, Operation};
use crate::plan::{KeepResampling, check_image};
use crate::request::Start;
use crate::run::Inputs;
use crate::{GenerateRequest, Generation, Pipeline};

/// Resampling of upsamplers, which read the complete small image and need no repetition.
const ONCE: Resampling = Resampling { rounds: 1, jump: 1 };

/// The size of the results of an inpainting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ResultSize {
    Model,
    Photo,
}

/// Inpainting of an image.
#[derive(Debug, Clone)]
pub struct Inpaint {
    image: RgbImage,
    mask: Mask,
    resampling: KeepResampling,
    size: ResultSize,
}

/// Outpainting of an image.
#[derive(Debug, Clone)]
pub struct Outpaint {
    image: RgbImage,
    borders: Borders,
    resampling: KeepResampling,
}

impl Inpaint {
    pub(super) fn new(image: RgbImage, mask: Mask) -> Self {
        let resampling = KeepResampling { decoder: Resampling::default(), upsamplers: ONCE };
        Self { image, mask, resampling, size: ResultSize::Model }
    }
}

impl Outpaint {
    pub(super) fn new(image: RgbImage, borders: Borders) -> Self {
        let resampling = KeepResampling { decoder: Resampling::default(), upsamplers: ONCE };
        Self { image, borders, resampling }
    }
}

/// An image whose unedited pixels a generation preserves.
#[derive(Debug)]
pub(crate) struct KeepImage {
    pub decoder: Inpainting,
    pub upsamplers: Inpainting,
    /// The image at the size of the results.
    image: RgbImage,
    mask: Mask,
}

impl KeepImage {
    /// Resizes a square image and its mask to results of `size` pixels a side.
    fn new(image: &RgbImage, mask: &Mask, size: u32, resampling: KeepResampling, device: &Device) -> Result<Self> {
        // In this order, so that resizing does not mix the hole into other pixels.
        let image = fit_square(&without_hole(image, mask), size);
        let mask = mask.resized([size, size])?;
        let keep = Inpainting::new(to_tensor(std::slice::from_ref(&image), device)?, mask.clone())?;
        Ok(Self {
            decoder: keep.clone().with_resampling(resampling.decoder),
            upsamplers: keep.with_resampling(resampling.upsamplers),
            image,
            mask,
        })
    }

    /// Copies the unedited pixels into a result, because a device's numbers can be coarser than a byte.
    pub(crate) fn restore(&self, result: &mut RgbImage) -> Result<()> {
        if result.dimensions() != self.image.dimensions() {
            let (size, expected) = (result.dimensions(), self.image.dimensions());
            return Err(Error::Mismatch(format!("a result of {size:?} pixels where {expected:?} are expected")));
        }
        for (x, y, pixel) in result.enumerate_pixels_mut().filter(|(x, y, _)| !self.mask.edits(*x, *y)) {
            *pixel = *self.image.get_pixel(x, y);
        }
        Ok(())
    }
}

impl Operation<'_, Inpaint> {
    /// Sets the resampling of a decoder without channels for known pixels: more rounds fit the fill better to its
    /// surroundings and take proportionally longer.
    pub fn resampling(mut self, resampling: Resampling) -> Self {
        self.kind.resampling.decoder = resampling;
        self
    }

    /// Sets the resampling of upsamplers without channels for known pixels; one round by default.
    pub fn upsampler_resampling(mut self, resampling: Resampling) -> Self {
        self.kind.resampling.upsamplers = resampling;
        self
    }

    /// Returns the photo at its own size: the fill is resized and blended into the edited pixels, and all other pixels are
    /// unchanged. The model reads the largest square around the edited pixels.
    pub fn at_photo_size(mut self) -> Self {
        self.kind.size = ResultSize::Photo;
        self
    }

    /// Generates the fills, `num_images` of them.
    ///
    /// # Errors
    /// If the mask has another size than the image or edits nothing of the square, the image is empty, there is neither a
    /// caption nor an image encoder, an option is out of range, or the hook returns an error.
    pub fn run(self) -> Result<Generation> {
        let Self { pipeline, request, mut controls, kind } = self;
        let Inpaint { image, mask, resampling, size } = kind;
        check_image(&image)?;
        mask.check_size([image.width(), image.height()])?;
        resampling.decoder.validate()?;
        resampling.upsamplers.validate().map_err(|e| e.within("upsampler"))?;
        let region = match size {
            ResultSize::Model => Region::center(image.width(), image.height()),
            ResultSize::Photo => Region::around(&mask),
        };
        let (square, square_mask) = (region.crop(&image), region.crop_mask(&mask));
        if square_mask.edited_share() == 0.0 {
            let message = "the mask edits no pixel of the square that is read: there is nothing to fill";
            return Err(Error::Input(message.into()));
        }
        let mut request = request;
        if request.lacks_caption() {
            request = request.embedding_of(square.clone());
        }
        pipeline.set_one_step_samplers(&mut request)?;
        let checked = pipeline.check(request, Some(resampling))?;
        let side = pipeline.result_size(&checked.request, checked.upsamplers)?;
        let keep = KeepImage::new(&square, &square_mask, side, resampling, &pipeline.device)?;
        let inputs = Inputs { keep: Some(&keep), ..Default::default() };
        let mut generation = pipeline.execute(&checked, inputs, &mut controls)?;
        if size == ResultSize::Photo {
            for fill in &mut generation.images {
                *fill = region.paste(&image, &mask, fill);
            }
        }
        Ok(generation)
    }
}

impl Operation<'_, Outpaint> {
    /// Sets the resampling of a decoder without channels for known pixels.
    pub fn resampling(mut self, resampling: Resampling) -> Self {
        self.kind.resampling.decoder = resampling;
        self
    }

    /// Sets the resampling of upsamplers without channels for known pixels; one round by default.
    pub fn upsampler_resampling(mut self, resampling: Resampling) -> Self {
        self.kind.resampling.upsamplers = resampling;
        self
    }

    /// Generates the extended images, `num_images` of them.
    ///
    /// # Errors
    /// As for [`Pipeline::inpaint`], and if the image with its borders is not square.
    pub fn run(self) -> Result<Generation> {
        let Self { pipeline, mut request, controls, kind: Outpaint { image, borders, resampling } } = self;
        let canvas = Canvas::extended(&image, borders)?;
        let (w, h) = canvas.image.dimensions();
        if w != h {
            return Err(Error::Input(format!("an image with borders of {w}×{h} pixels: it must be square")));
        }
        if request.lacks_caption() {
            request = request.embedding_of(center_crop(&image));
        }
        let kind = Inpaint { resampling, ..Inpaint::new(canvas.image, canvas.mask) };
        Operation { pipeline, request, controls, kind }.run()
    }
}

impl Pipeline {
    /// Selects DDPM where the default sampler depends on earlier steps, which a change of the data between steps would
    /// invalidate; refuses a request for such a sampler.
    fn set_one_step_samplers(&self, request: &mut GenerateRequest) -> Result<()> {
        let multistep = |sampler: Sampler| matches!(sampler, Sampler::DpmSolver2m | Sampler::DpmSolver2s);
        let set = |sampler: &mut Option<Sampler>, default: Option<Sampler>, stage: &str| -> Result<()> {
            match *sampler {
                Some(requested) if multistep(requested) => {
                    let expected = "must be ddpm or ddim for inpainting";
                    Err(ConfigError::new("sampler", format!("{requested:?}"), expected).within(stage).into())
                }
                None if default.is_some_and(multistep) => {
                    *sampler = Some(Sampler::Ddpm);
                    Ok(())
                }
                _ => Ok(()),
            }
        };
        set(&mut request.decoder.sampler, self.decoder.defaults().sampler, "decoder")?;
        for (index, upsampler) in self.upsamplers.iter().enumerate() {
            let mut options = request.options_of(index).clone();
            set(&mut options.sampler, upsampler.defaults().sampler, "upsampler")?;
            *request = std::mem::take(request).upsampler_options_of(index, options);
        }
        Ok(())
    }

    /// Side in pixels of the results of a request.
    fn result_size(&self, request: &GenerateRequest, upsamplers: usize) -> Result<u32> {
        let first = match &request.start {
            Start::Images(images) => match images.first().map(RgbImage::dimensions) {
                Some((w, h)) if w == h => w as usize,
                Some((w, h)) => {
                    let message = format!("images of {w}×{h} pixels to start an inpainting from: they must be square");
                    return Err(Error::Input(message));
                }
                None => return Err(Error::Input("no images to start from".into())),
            },
            _ => self.decoder.image_size(),
        };
        let upsamplers = self.upsamplers.iter().take(upsamplers);
        Ok(upsamplers.fold(first, |size, upsampler| size * upsampler.factor()) as u32)
    }
}
