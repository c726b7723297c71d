//! Drawing a part of an image anew, or what lies around it: with networks that read the known pixels (GLIDE, arXiv
//! 2112.10741, section 2.5), and with any other by resampling (RePaint, arXiv 2201.09865).

use std::collections::VecDeque;

use burn::prelude::*;
use dalle2_core::diffusion::{Resampling, Sampler};
use dalle2_core::image::{Mask, RgbImage, center_crop, fit_square, to_tensor};
use dalle2_core::{ConfigError, Error, Inpainting, Result};

use super::inversion::check_image;
use super::{Borders, Canvas, Controls};
use crate::request::Start;
use crate::{GenerateRequest, Generation, Pipeline};

/// How a part of an image is drawn anew. Networks with channels for known pixels need neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inpaint {
    /// How a decoder without channels for known pixels repeats stretches of its way, so that what it draws fits what is
    /// kept. More rounds fit better and take as many times longer.
    pub resampling: Resampling,
    /// The same for upsamplers, which see the whole small image and need no repetition by default.
    pub upsampler_resampling: Resampling,
}

impl Default for Inpaint {
    fn default() -> Self {
        Self { resampling: Resampling::default(), upsampler_resampling: Resampling { rounds: 1, jump: 1 } }
    }
}

/// What a generation keeps of an image.
#[derive(Debug)]
pub(crate) struct Kept {
    pub decoder: Inpainting,
    pub upsamplers: Inpainting,
    /// The image at the size of the results.
    image: RgbImage,
    mask: Mask,
}

impl Kept {
    /// For results of `size` pixels a side. Image and mask are square and of one size.
    fn new(image: &RgbImage, mask: &Mask, size: usize, options: &Inpaint, device: &Device) -> Result<Self> {
        // In this order, so that resizing does not mix the hole into what is kept.
        let image = fit_square(&without_hole(image, mask), size as u32);
        let mask = mask.resized([size, size])?;
        let kept = Inpainting::new(to_tensor(std::slice::from_ref(&image), device)?, mask.clone())?;
        Ok(Self {
            decoder: kept.clone().with_resampling(options.resampling),
            upsamplers: kept.with_resampling(options.upsampler_resampling),
            image,
            mask,
        })
    }

    /// Puts the kept pixels into a result: they stay as they were also where a device's numbers are coarser than a byte.
    pub fn restore(&self, drawn: &mut RgbImage) -> Result<()> {
        if drawn.dimensions() != self.image.dimensions() {
            let ([w, h], (expected, _)) = ([drawn.width(), drawn.height()], self.image.dimensions());
            let message = format!("an inpainting drew {w}×{h} pixels where {expected}×{expected} are kept");
            return Err(Error::Mismatch(message));
        }
        for (x, y, pixel) in drawn.enumerate_pixels_mut() {
            if !self.mask.edits(x as usize, y as usize) {
                *pixel = *self.image.get_pixel(x, y);
            }
        }
        Ok(())
    }
}

impl Pipeline {
    /// Draws the part of an image that the mask edits, and keeps the rest.
    ///
    /// The largest square in the middle of image and mask is read, at the size of the results; its kept pixels are in every
    /// result as they were. What the hole shows does not matter to them.
    ///
    /// The request's caption says what the whole image shows: the prior draws its embedding, and the decoder reads it.
    /// Without one, the embedding is that of the image itself. As in any generation, the request may begin with embeddings,
    /// or after the decoder with [`GenerateRequest::from_images`], and end at any stage; its number of images are as many
    /// fills. The sampler must be DDPM or DDIM; a model whose own is another one draws with DDPM.
    ///
    /// # Errors
    /// When the mask has another size than the image or edits nothing of the square, the image is empty, there is no caption
    /// and no image encoder, or an option is out of range.
    pub fn inpaint(
        &self,
        image: &RgbImage,
        mask: &Mask,
        options: &Inpaint,
        request: impl Into<GenerateRequest>,
    ) -> Result<Generation> {
        self.inpaint_with(image, mask, options, request, &mut Controls::new())
    }

    /// Like [`Pipeline::inpaint`], with controls.
    ///
    /// # Errors
    /// As [`Pipeline::inpaint`], and when the hook stops it.
    pub fn inpaint_with(
        &self,
        image: &RgbImage,
        mask: &Mask,
        options: &Inpaint,
        request: impl Into<GenerateRequest>,
        controls: &mut Controls<'_>,
    ) -> Result<Generation> {
        check_image(image)?;
        mask.check_size([image.width() as usize, image.height() as usize])?;
        options.resampling.validate()?;
        options.upsampler_resampling.validate().map_err(|e| e.within("upsampler"))?;
        let (image, mask) = (center_crop(image), center_of(mask));
        if mask.edited_share() == 0.0 {
            let message = "the mask edits no pixel of the square in the middle: there is nothing to draw";
            return Err(Error::Input(message.into()));
        }
        let mut request = request.into().settled();
        if matches!(request.start, Start::Caption) && request.caption.trim().is_empty() {
            request = request.embedding_of(image.clone());
        }
        self.resamplable(&mut request)?;
        self.validate(&request)?;
        let kept = Kept::new(&image, &mask, self.drawn_size(&request)?, options, &self.device)?;
        self.draw(request, Some(&kept), &mut *controls.noise, &mut *controls.hook)
    }

    /// Draws what lies around an image: [`Pipeline::inpaint`] on a [`Canvas`]. Without a caption, the embedding is that of
    /// the image without its borders.
    ///
    /// # Errors
    /// As [`Pipeline::inpaint`], and when the image with its borders is not square.
    pub fn outpaint(
        &self,
        image: &RgbImage,
        borders: Borders,
        options: &Inpaint,
        request: impl Into<GenerateRequest>,
    ) -> Result<Generation> {
        self.outpaint_with(image, borders, options, request, &mut Controls::new())
    }

    /// Like [`Pipeline::outpaint`], with controls.
    ///
    /// # Errors
    /// As [`Pipeline::outpaint`], and when the hook stops it.
    pub fn outpaint_with(
        &self,
        image: &RgbImage,
        borders: Borders,
        options: &Inpaint,
        request: impl Into<GenerateRequest>,
        controls: &mut Controls<'_>,
    ) -> Result<Generation> {
        let canvas = Canvas::extended(image, borders)?;
        let (w, h) = canvas.image.dimensions();
        if w != h {
            let message = format!("an image with borders of {w}×{h} pixels: it must be square to be drawn whole");
            return Err(Error::Input(message));
        }
        let mut request = request.into();
        if matches!(request.start, Start::Caption) && request.caption.trim().is_empty() {
            request = request.embedding_of(center_crop(image));
        }
        self.inpaint_with(&canvas.image, &canvas.mask, options, request, controls)
    }

    /// Gives every stage that draws images a sampler whose data may be changed between its steps.
    fn resamplable(&self, request: &mut GenerateRequest) -> Result<()> {
        let settle = |sampler: &mut Option<Sampler>, default: Option<Sampler>, stage: &str| -> Result<()> {
            let multistep = |sampler: &Sampler| matches!(sampler, Sampler::DpmSolver2m | Sampler::DpmSolver2s);
            match *sampler {
                Some(sampler) if multistep(&sampler) => {
                    let expected = "must be ddpm or ddim where a part of an image is kept";
                    Err(ConfigError::new("sampler", format!("{sampler:?}"), expected).within(stage).into())
                }
                None if default.as_ref().is_some_and(multistep) => {
                    *sampler = Some(Sampler::Ddpm);
                    Ok(())
                }
                _ => Ok(()),
            }
        };
        settle(&mut request.decoder.sampler, self.decoder.defaults().sampler, "decoder")?;
        for (index, upsampler) in self.upsamplers.iter().enumerate() {
            let mut options = request.options_of(index).clone();
            settle(&mut options.sampler, upsampler.defaults().sampler, "upsampler")?;
            *request = std::mem::take(request).upsampler_options_of(index, options);
        }
        Ok(())
    }

    /// Side in pixels of what a request draws.
    fn drawn_size(&self, request: &GenerateRequest) -> Result<usize> {
        let upsamplers = self.upsamplers.iter().take(self.upsamplers_of(request)?);
        let first = match &request.start {
            Start::Images(images) => match images.first().map(RgbImage::dimensions) {
                Some((w, h)) if w == h => w as usize,
                Some((w, h)) => {
                    let message = format!("images of {w}×{h} pixels to begin an inpainting with: they must be square");
                    return Err(Error::Input(message));
                }
                None => return Err(Error::Input("no images to begin with".into())),
            },
            Start::Caption | Start::Embeddings(_) | Start::EmbeddingOf(_) => self.decoder.image_size(),
        };
        Ok(upsamplers.fold(first, |size, upsampler| size * upsampler.factor()))
    }
}

/// The largest square in the middle of a mask, where [`center_crop`] finds it in an image.
fn center_of(mask: &Mask) -> Mask {
    let [w, h] = mask.size();
    let side = w.min(h);
    let (left, top) = ((w - side) / 2, (h - side) / 2);
    Mask::edit_where(side, side, |x, y| mask.edits(left + x, top + y))
}

/// The image with the colour of the nearest kept pixel in every edited one.
fn without_hole(image: &RgbImage, mask: &Mask) -> RgbImage {
    let (w, h) = image.dimensions();
    let mut filled = image.clone();
    let mut known: Vec<bool> = image.enumerate_pixels().map(|(x, y, _)| !mask.edits(x as usize, y as usize)).collect();
    let at = |x: u32, y: u32| y as usize * w as usize + x as usize;
    let mut front: VecDeque<(u32, u32)> =
        image.enumerate_pixels().map(|(x, y, _)| (x, y)).filter(|&(x, y)| known[at(x, y)]).collect();
    while let Some((x, y)) = front.pop_front() {
        let colour = *filled.get_pixel(x, y);
        for (x, y) in [(x.wrapping_sub(1), y), (x + 1, y), (x, y.wrapping_sub(1)), (x, y + 1)] {
            if x < w && y < h && !known[at(x, y)] {
                known[at(x, y)] = true;
                filled.put_pixel(x, y, colour);
                front.push_back((x, y));
            }
        }
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_takes_the_colour_of_the_nearest_kept_pixel() {
        let image = RgbImage::from_fn(5, 1, |x, _| ::image::Rgb([x as u8 * 10; 3]));
        let mask = Mask::edit_where(5, 1, |x, _| (1..4).contains(&x));
        let filled: Vec<u8> = without_hole(&image, &mask).pixels().map(|pixel| pixel.0[0]).collect();
        assert_eq!(filled[..2], [0, 0]);
        assert_eq!(filled[3..], [40, 40]);
        let everything = Mask::edit_where(5, 1, |_, _| true);
        assert_eq!(without_hole(&image, &everything), image);
    }

    #[test]
    fn the_square_of_a_mask_is_that_of_its_image() {
        for (w, h) in [(5, 8), (9, 4), (3, 3)] {
            let marks = |x: u32, y: u32| (x * 7 + y * 3) % 4 == 1;
            let image = RgbImage::from_fn(w, h, |x, y| ::image::Rgb([if marks(x, y) { 255 } else { 0 }; 3]));
            let mask = center_of(&Mask::edit_where(w as usize, h as usize, |x, y| marks(x as u32, y as u32)));
            for (x, y, pixel) in center_crop(&image).enumerate_pixels() {
                assert_eq!(mask.edits(x as usize, y as usize), pixel.0[0] == 255, "{w}×{h} at ({x}, {y})");
            }
        }
    }
}
