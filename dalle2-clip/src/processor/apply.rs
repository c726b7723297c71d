//! Applies an image processor to images.
//!
//! Only the pixels of the crop are resized: an image of 1 × 16,000 pixels takes no more memory than a square one.

use burn::prelude::*;
use dalle2_core::image::from_tensor;
use dalle2_core::{Error, Result};

use super::ImageProcessor;
use super::config::CropRounding;
use super::pillow::{Axis, Pixels};

impl ImageProcessor {
    /// Converts images to the input of the vision tower. Values are rounded to 8 bits first.
    ///
    /// # Shapes
    /// `[B, 3, H, W]` in [−1, 1] -> `[B, 3, height, width]`
    ///
    /// # Errors
    /// If the tensor is not an RGB batch or has values that are not finite.
    pub fn forward(&self, images: Tensor<4>) -> Result<Tensor<4>> {
        let [b, c, h, w] = images.dims();
        if c != 3 || b * h * w == 0 {
            let shape = format!("[{b}, {c}, {h}, {w}]");
            return Err(Error::Input(format!("images have the shape {shape}, expected RGB batches [B, 3, H, W]")));
        }
        let device = images.device();
        let [height, width] = self.output_size([h, w]);
        let mut data = Vec::with_capacity(b * 3 * height * width);
        for image in from_tensor(images)? {
            let pixels = self.resize_and_crop(Pixels { height: h, width: w, data: image.into_raw() });
            for channel in 0..3 {
                data.extend(pixels.data.iter().skip(channel).step_by(3).map(|byte| self.normalize(*byte, channel)));
            }
        }
        Ok(Tensor::from_data(TensorData::new(data, [b, 3, height, width]), &device))
    }

    fn resize_and_crop(&self, pixels: Pixels) -> Pixels {
        let source = [pixels.height, pixels.width];
        let resized = if self.do_resize { self.resized(source) } else { source };
        let output = self.output_size(source);
        let [rows, columns] = [0, 1].map(|axis| {
            let offset = if self.do_center_crop { self.crop_offset(resized[axis], output[axis]) } else { 0 };
            Axis { resized: resized[axis], offset, output: output[axis] }
        });
        pixels.resize(&rows, &columns, self.resample)
    }

    /// First pixel of a crop of `output` pixels in `resized` ones; negative if the crop is larger.
    fn crop_offset(&self, resized: usize, output: usize) -> i64 {
        let margin = resized as i64 - output as i64;
        match self.crop_rounding {
            CropRounding::HalfEven if margin > 0 => margin / 2 + i64::from(margin % 4 == 3),
            _ => margin.div_euclid(2),
        }
    }

    fn normalize(&self, byte: u8, channel: usize) -> f32 {
        let value = if self.do_rescale { (f64::from(byte) * self.rescale_factor) as f32 } else { f32::from(byte) };
        if self.do_normalize {
            (value - self.image_mean[channel] as f32) / self.image_std[channel] as f32
        } else {
            value
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ImageSize;

    #[test]
    fn small_images_get_black_borders() {
        let processor = ImageProcessor {
            do_resize: false,
            crop_size: ImageSize::Number(5),
            do_normalize: false,
            ..ImageProcessor::default()
        };
        let white = Tensor::<4>::ones([1, 3, 2, 9], &Device::flex());
        let pixels = processor.forward(white).unwrap();
        assert_eq!(pixels.dims(), [1, 3, 5, 5]);
        let rows: Vec<f32> = pixels.slice(s![0, 0, .., 2]).try_into_vec_as().unwrap();
        assert_eq!(rows, [0.0, 0.0, 1.0, 1.0, 0.0]);
    }

    #[test]
    fn the_centre_of_a_long_strip_is_resized_in_little_memory() {
        // A gradient along the strip: the crop shows its middle.
        let device = Device::flex();
        let processor = ImageProcessor { do_normalize: false, ..ImageProcessor::default() };
        let strip = Tensor::<1, Int>::arange(0..16_000, &device).float() / 8_000.0 - 1.0;
        let strip = strip.reshape([1, 1, 1, 16_000]).expand([1, 3, 1, 16_000]);
        for strip in [strip.clone(), strip.swap_dims(2, 3)] {
            let pixels = processor.forward(strip).unwrap();
            assert_eq!(pixels.dims(), [1, 3, 224, 224]);
            let mean = pixels.mean().into_scalar::<f32>();
            assert!((mean - 0.5).abs() < 0.01, "{mean}");
        }
    }
}
