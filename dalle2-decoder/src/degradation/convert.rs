//! Between tensors and images of floats.

use burn::prelude::*;
use dalle2_core::{Error, Result};
use image::{Rgb, Rgb32FImage};

/// One image `[1, 3, H, W]` in [−1, 1] as an image with values in [0, 1].
///
/// # Errors
/// When the tensor is not one RGB image, or cannot be read back.
pub fn planes_to_image(tensor: Tensor<4>) -> Result<Rgb32FImage> {
    let [b, c, h, w] = tensor.dims();
    if [b, c] != [1, 3] {
        return Err(Error::Input(format!("a tensor of shape {:?} is not one RGB image", [b, c, h, w])));
    }
    let values: Vec<f32> =
        tensor.try_into_vec_as().map_err(|e| Error::Device(format!("reading an image back: {e}")))?;
    let plane = h * w;
    Ok(Rgb32FImage::from_fn(w as u32, h as u32, |x, y| {
        let p = y as usize * w + x as usize;
        Rgb([values[p], values[plane + p], values[2 * plane + p]].map(|v| ((v + 1.0) / 2.0).clamp(0.0, 1.0)))
    }))
}

/// The reverse of [`planes_to_image`].
///
/// # Shapes
/// `[1, 3, H, W]`
pub fn image_to_planes(image: &Rgb32FImage, device: &Device) -> Tensor<4> {
    let (w, h) = (image.width() as usize, image.height() as usize);
    let values: Vec<f32> = (0..3).flat_map(|c| image.pixels().map(move |p| p.0[c] * 2.0 - 1.0)).collect();
    Tensor::from_data(TensorData::new(values, [1, 3, h, w]), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_survives_the_round_trip() {
        let device = Device::flex();
        let values: Vec<f32> = (0..18).map(|i| i as f32 / 9.0 - 1.0).collect();
        let tensor = Tensor::<4>::from_data(TensorData::new(values.clone(), [1, 3, 2, 3]), &device);
        let image = planes_to_image(tensor).unwrap();
        assert_eq!(image.dimensions(), (3, 2));
        let found = image_to_planes(&image, &device).into_data().try_to_vec::<f32>().unwrap();
        assert!(found.iter().zip(&values).all(|(a, b)| (a - b).abs() < 1e-6));
        assert!(planes_to_image(Tensor::zeros([2, 3, 2, 2], &device)).is_err());
    }
}
