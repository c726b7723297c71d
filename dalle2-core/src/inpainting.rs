//! An image of which a part is kept.

use burn::prelude::*;

use crate::diffusion::{Known, Resampling};
use crate::image::{Mask, resize_bicubic};
use crate::{Error, Result};

/// An image of which a part is kept while the rest is drawn anew; what a decoder and its upsamplers need for inpainting.
#[derive(Debug, Clone)]
pub struct Inpainting {
    images: Tensor<4>,
    mask: Mask,
    resampling: Resampling,
}

impl Inpainting {
    /// Images `[B or 1, 3, H, W]` in [−1, 1] and a mask of their size. One image serves any number of results.
    ///
    /// # Errors
    /// When the images are not RGB or the mask has another size.
    pub fn new(images: Tensor<4>, mask: Mask) -> Result<Self> {
        let [b, c, h, w] = images.dims();
        if c != 3 || b == 0 {
            return Err(Error::Input(format!("images of shape [{b}, {c}, {h}, {w}]: expected [B, 3, H, W]")));
        }
        mask.check_size([w, h])?;
        Ok(Self { images, mask, resampling: Resampling::default() })
    }

    /// How networks without mask channels are resampled; networks that have them do not need it.
    pub fn with_resampling(mut self, resampling: Resampling) -> Self {
        self.resampling = resampling;
        self
    }

    /// How networks without mask channels are resampled.
    pub fn resampling(&self) -> Resampling {
        self.resampling
    }

    /// The mask at the size of the images.
    pub fn mask(&self) -> &Mask {
        &self.mask
    }

    /// What is known at `height` × `width` pixels: the images resized, and the mask, whose kept pixels there are those
    /// that lie in kept ones whole.
    ///
    /// # Errors
    /// When a side is empty.
    pub fn known(&self, [height, width]: [usize; 2]) -> Result<Known<4>> {
        let mask = self.mask.resized([width, height])?;
        let x_start = resize_bicubic(self.images.clone(), [height, width]).clamp(-1.0, 1.0);
        let keep = mask.keep_tensor(&x_start.device());
        Ok(Known { x_start, keep })
    }

    /// The kept pixels of the images over `drawn`, bit for bit where the sizes agree.
    ///
    /// # Shapes
    /// `[B, 3, H, W]` of any size -> the same
    ///
    /// # Errors
    /// When a side is empty, or the batch does not fit the images.
    pub fn over(&self, drawn: Tensor<4>) -> Result<Tensor<4>> {
        let [b, _, h, w] = drawn.dims();
        self.check_batch(b)?;
        let known = self.known([h, w])?;
        Ok(known.replace(drawn, known.x_start.clone()))
    }

    /// Checks that there is one image, or one per item of a batch.
    ///
    /// # Errors
    /// [`Error::Input`] with both numbers.
    pub fn check_batch(&self, batch: usize) -> Result<()> {
        match self.images.dims()[0] {
            n if n == 1 || n == batch => Ok(()),
            n => Err(Error::Input(format!("{n} images to keep for a batch of {batch}: give 1 or {batch}"))),
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
        let out = inpainting.over(Tensor::full([2, 3, 4, 4], 9.0, &device)).unwrap();
        let out = out.into_data().try_to_vec::<f32>().unwrap();
        for (i, found) in out.into_iter().enumerate() {
            let expected = if i % 4 == 0 { 9.0 } else { values[i % 48] };
            assert_eq!(found, expected, "{i}");
        }
    }

    #[test]
    fn a_smaller_size_keeps_only_what_is_kept_whole() {
        let device = Device::flex();
        let mask = Mask::edit_where(4, 4, |x, y| x == 3 && y == 3);
        let inpainting = Inpainting::new(Tensor::ones([1, 3, 4, 4], &device), mask).unwrap();
        let known = inpainting.known([2, 2]).unwrap();
        assert_eq!(known.x_start.dims(), [1, 3, 2, 2]);
        assert_eq!(known.keep.into_data().try_to_vec::<f32>().unwrap(), [1.0, 1.0, 1.0, 0.0]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let device = Device::flex();
        let mask = Mask::keep_where(4, 4, |_, _| true);
        let message = Inpainting::new(Tensor::zeros([1, 3, 4, 5], &device), mask.clone()).unwrap_err().to_string();
        assert!(message.contains("4 × 4") && message.contains("5 × 4"), "{message}");
        assert!(Inpainting::new(Tensor::zeros([1, 4, 4, 4], &device), mask.clone()).is_err());
        let two = Inpainting::new(Tensor::zeros([2, 3, 4, 4], &device), mask).unwrap();
        assert!(two.over(Tensor::zeros([3, 3, 4, 4], &device)).is_err());
    }
}
