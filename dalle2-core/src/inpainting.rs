//! Images whose unedited pixels a generation preserves.

use burn::prelude::*;

use crate::diffusion::{Known, Resampling};
use crate::image::{Mask, resize_bicubic};
use crate::{Error, Result};

/// Images and a mask for inpainting: decoder and upsamplers generate the edited pixels and preserve the others.
#[derive(Debug, Clone)]
pub struct Inpainting {
    images: Tensor<4>,
    mask: Mask,
    resampling: Resampling,
}

impl Inpainting {
    /// Creates it from images `[B or 1, 3, H, W]` in [−1, 1] and a mask of their size. One image serves any batch.
    ///
    /// # Errors
    /// If the images are not RGB or the mask has another size.
    pub fn new(images: Tensor<4>, mask: Mask) -> Result<Self> {
        let [b, c, h, w] = images.dims();
        if c != 3 || b == 0 {
            return Err(Error::Input(format!("images of shape [{b}, {c}, {h}, {w}]: expected [B, 3, H, W]")));
        }
        mask.check_size([w as u32, h as u32])?;
        Ok(Self { images, mask, resampling: Resampling::default() })
    }

    /// Sets the resampling of networks without mask channels; networks with them need none.
    pub fn with_resampling(mut self, resampling: Resampling) -> Self {
        self.resampling = resampling;
        self
    }

    /// The resampling of networks without mask channels.
    pub fn resampling(&self) -> Resampling {
        self.resampling
    }

    /// The mask at the size of the images.
    pub fn mask(&self) -> &Mask {
        &self.mask
    }

    /// Resizes images and mask to `height` × `width` pixels. A pixel is known if every pixel that it covers is unedited.
    ///
    /// # Errors
    /// If a side is empty.
    pub fn known(&self, [height, width]: [usize; 2]) -> Result<Known<4>> {
        let mask = self.mask.resized([width as u32, height as u32])?;
        let x_start = resize_bicubic(self.images.clone(), [height, width]).clamp(-1.0, 1.0);
        let keep = mask.keep_tensor(&x_start.device());
        Ok(Known { x_start, keep })
    }

    /// Pastes the unedited pixels over `generated`, bit for bit if the sizes are equal.
    ///
    /// # Shapes
    /// `[B, 3, H, W]` of any size -> the same
    ///
    /// # Errors
    /// If a side is empty, or the batch differs from the number of images.
    pub fn paste_over(&self, generated: Tensor<4>) -> Result<Tensor<4>> {
        let [b, _, h, w] = generated.dims();
        self.check_batch(b)?;
        let known = self.known([h, w])?;
        Ok(known.replace(generated, known.x_start.clone()))
    }

    /// Checks that there is one image, or one per item of a batch.
    ///
    /// # Errors
    /// [`Error::Input`] with both numbers.
    pub fn check_batch(&self, batch: usize) -> Result<()> {
        match self.images.dims()[0] {
            n if n == 1 || n == batch => Ok(()),
            n => Err(Error::Input(format!("{n} images to preserve for a batch of {batch}: give 1 or {batch}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_pixels_come_back_bit_for_bit() {
        let device = Device::flex();
        let values: Vec<f32> = (0..48).map(|i| (i as f32 * 0.7).sin()).collect();
        let images = Tensor::<4>::from_data(TensorData::new(values.clone(), [1, 3, 4, 4]), &device);
        let mask = Mask::edit_where(4, 4, |x, _| x == 0);
        let inpainting = Inpainting::new(images, mask).unwrap();
        let out = inpainting.paste_over(Tensor::full([2, 3, 4, 4], 9.0, &device)).unwrap();
        let out = out.into_data().try_to_vec::<f32>().unwrap();
        for (i, value) in out.into_iter().enumerate() {
            let expected = if i % 4 == 0 { 9.0 } else { values[i % 48] };
            assert_eq!(value, expected, "{i}");
        }
    }

    #[test]
    fn a_smaller_size_preserves_pixels_without_an_edited_part() {
        let device = Device::flex();
        let mask = Mask::edit_where(4, 4, |x, y| x == 3 && y == 3);
        let inpainting = Inpainting::new(Tensor::ones([1, 3, 4, 4], &device), mask).unwrap();
        let known = inpainting.known([2, 2]).unwrap();
        assert_eq!(known.x_start.dims(), [1, 3, 2, 2]);
        assert_eq!(known.keep.into_data().try_to_vec::<f32>().unwrap(), [1.0, 1.0, 1.0, 0.0]);
    }

    #[test]
    fn wrong_sizes_are_named() {
        let device = Device::flex();
        let mask = Mask::keep_where(4, 4, |_, _| true);
        let message = Inpainting::new(Tensor::zeros([1, 3, 4, 5], &device), mask.clone()).unwrap_err().to_string();
        assert!(message.contains("4 × 4") && message.contains("5 × 4"), "{message}");
        assert!(Inpainting::new(Tensor::zeros([1, 4, 4, 4], &device), mask.clone()).is_err());
        let two = Inpainting::new(Tensor::zeros([2, 3, 4, 4], &device), mask).unwrap();
        assert!(two.paste_over(Tensor::zeros([3, 3, 4, 4], &device)).is_err());
    }
}
