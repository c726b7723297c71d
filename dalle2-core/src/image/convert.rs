//! Between [`RgbImage`] and tensors, and the crops that make images of any shape square.

use burn::prelude::*;

use ::image::{RgbImage, imageops};

use crate::{Error, Result};

/// Images of one size as a tensor with values in [−1, 1].
///
/// # Shapes
/// - output: `[B, 3, H, W]`
///
/// # Errors
/// [`Error::Input`] if there is no image or the sizes differ.
pub fn to_tensor(images: &[RgbImage], device: &Device) -> Result<Tensor<4>> {
    let Some(first) = images.first() else {
        return Err(Error::Input("no image to convert: a batch has at least one".into()));
    };
    let (width, height) = first.dimensions();
    let plane = width as usize * height as usize;
    let mut values = vec![0.0f32; images.len() * 3 * plane];
    for (i, image) in images.iter().enumerate() {
        if image.dimensions() != (width, height) {
            let (w, h) = image.dimensions();
            return Err(Error::Input(format!(
                "image {i} of the batch is {w}×{h}, the first one {width}×{height}: all must have one size"
            )));
        }
        for (p, pixel) in image.pixels().enumerate() {
            for (c, &byte) in pixel.0.iter().enumerate() {
                values[(i * 3 + c) * plane + p] = f32::from(byte) / 127.5 - 1.0;
            }
        }
    }
    let shape = [images.len(), 3, height as usize, width as usize];
    Ok(Tensor::from_data(TensorData::new(values, shape), device))
}

/// A tensor with values in [−1, 1] as images. Values outside are clamped; each is rounded to the nearest byte.
///
/// # Shapes
/// - `tensor`: `[B, 3, H, W]`
///
/// # Errors
/// [`Error::Input`] if there are not three channels, a side is empty or beyond an image's, or a value is not finite;
/// [`Error::Device`] if the tensor cannot be read back.
pub fn from_tensor(tensor: Tensor<4>) -> Result<Vec<RgbImage>> {
    let [b, c, h, w] = tensor.dims();
    let (Ok(width), Ok(height)) = (u32::try_from(w), u32::try_from(h)) else {
        return Err(Error::Input(format!("a tensor of shape {:?} is too large for an image", [b, c, h, w])));
    };
    if c != 3 || h == 0 || w == 0 {
        return Err(Error::Input(format!("a tensor of shape {:?} is not images: expected [B, 3, H, W]", [b, c, h, w])));
    }
    let values: Vec<f32> = tensor.try_into_vec_as().map_err(|e| Error::Device(format!("reading images back: {e}")))?;
    let plane = h * w;
    if let Some(at) = values.iter().position(|v| !v.is_finite()) {
        let (i, channel, y, x) = (at / (3 * plane), at / plane % 3, at % plane / w, at % w);
        let value = values[at];
        return Err(Error::Input(format!(
            "image {i} has {value} in channel {channel} at ({x}, {y}): values must be finite"
        )));
    }
    let images = values.chunks_exact(3 * plane).map(|image| {
        RgbImage::from_fn(width, height, |x, y| {
            let p = y as usize * w + x as usize;
            ::image::Rgb([image[p], image[plane + p], image[2 * plane + p]].map(to_byte))
        })
    });
    Ok(images.collect())
}

/// [−1, 1] to 0..=255, to the nearest, ties away from zero.
fn to_byte(value: f32) -> u8 {
    ((value.clamp(-1.0, 1.0) + 1.0) * 127.5).round() as u8
}

/// The largest square in the middle of an image.
pub fn center_crop(image: &RgbImage) -> RgbImage {
    let (w, h) = image.dimensions();
    let side = w.min(h);
    imageops::crop_imm(image, (w - side) / 2, (h - side) / 2, side, side).to_image()
}

/// The largest square in the middle, resized to `size` × `size` with an antialiased cubic filter (a = −0.5).
pub fn fit_square(image: &RgbImage, size: u32) -> RgbImage {
    let square = center_crop(image);
    if square.width() == size {
        square
    } else {
        imageops::resize(&square, size, size, imageops::FilterType::CatmullRom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gradient(w: u32, h: u32) -> RgbImage {
        RgbImage::from_fn(w, h, |x, y| ::image::Rgb([(x * 7 + y) as u8, (y * 11) as u8, (x + 200) as u8]))
    }

    #[test]
    fn all_bytes_survive_the_round_trip() {
        let image = RgbImage::from_fn(16, 16, |x, y| ::image::Rgb([(y * 16 + x) as u8; 3]));
        let tensor = to_tensor(&[image.clone(), gradient(16, 16)], &Device::flex()).unwrap();
        assert_eq!(tensor.dims(), [2, 3, 16, 16]);
        assert_eq!(from_tensor(tensor).unwrap(), [image, gradient(16, 16)]);
    }

    #[test]
    fn axes_and_values_are_where_they_belong() {
        let mut image = RgbImage::new(3, 2);
        image.put_pixel(2, 1, ::image::Rgb([255, 0, 51]));
        let tensor = to_tensor(&[image], &Device::flex()).unwrap();
        assert_eq!(tensor.dims(), [1, 3, 2, 3]);
        let at: Vec<f32> = tensor.slice(s![.., .., 1..2, 2..3]).try_into_vec_as().unwrap();
        assert_eq!(at[..2], [1.0, -1.0]);
        assert!((at[2] + 0.6).abs() < 1e-6);
    }

    #[test]
    fn values_are_clamped_and_rounded_to_the_nearest() {
        let values = [-7.0, 7.0, 0.0, 1.0 - 1.9 / 255.0, 1.0 - 2.1 / 255.0, -1.0 + 0.9 / 255.0];
        let data = TensorData::new(values.repeat(3), [1, 3, 1, 6]);
        let image = &from_tensor(Tensor::from_data(data, &Device::flex())).unwrap()[0];
        let bytes: Vec<u8> = image.pixels().map(|p| p.0[0]).collect();
        assert_eq!(bytes, [0, 255, 128, 254, 254, 0]);
    }

    #[test]
    fn what_is_not_a_batch_of_images_is_refused() {
        let device = Device::flex();
        assert!(to_tensor(&[], &device).is_err());
        let message = to_tensor(&[gradient(4, 4), gradient(4, 5)], &device).unwrap_err().to_string();
        assert!(message.contains("image 1") && message.contains("4×5"), "{message}");
        let message = from_tensor(Tensor::zeros([1, 4, 2, 2], &device)).unwrap_err().to_string();
        assert!(message.contains("[1, 4, 2, 2]"), "{message}");
        let mut values = vec![0.0f32; 24];
        values[12 + 4 + 3] = f32::NAN;
        let nan = Tensor::from_data(TensorData::new(values, [2, 3, 2, 2]), &device);
        let message = from_tensor(nan).unwrap_err().to_string();
        assert!(message.contains("image 1") && message.contains("channel 1 at (1, 1)"), "{message}");
        assert!(from_tensor(Tensor::zeros([1, 3, 0, 2], &device)).is_err());
    }

    #[test]
    fn crops_are_centred_and_square() {
        let image = gradient(10, 4);
        let crop = center_crop(&image);
        assert_eq!(crop.dimensions(), (4, 4));
        assert_eq!(crop.get_pixel(0, 0), image.get_pixel(3, 0));
        assert_eq!(fit_square(&image, 4), crop);
        assert_eq!(fit_square(&RgbImage::from_pixel(9, 5, ::image::Rgb([9, 8, 7])), 3).into_raw(), [9, 8, 7].repeat(9));
    }
}
