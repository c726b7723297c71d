//! Converts images of any size to the input of the vision tower.

use burn::prelude::*;
use dalle2_core::image::resize_bicubic;
use dalle2_core::{Error, Result};

use crate::VisionTransformerConfig;

/// Maximum aspect ratio of an image that is resized completely.
const MAX_ASPECT: usize = 16;

/// Resizes the short side to the image size of the tower (antialiased bicubic), crops the centre and normalises each
/// channel.
///
/// The ends of strips that are more than 16 times longer than wide are cropped before the resize.
///
/// # Shapes
/// `[B, 3, H, W]` in [−1, 1] -> `[B, 3, image_size, image_size]`
///
/// # Errors
/// If the tensor is empty or does not have three channels.
pub fn preprocess(images: Tensor<4>, config: &VisionTransformerConfig) -> Result<Tensor<4>> {
    let [b, c, h, w] = images.dims();
    if c != 3 || b * h * w == 0 {
        let shape = format!("[{b}, {c}, {h}, {w}]");
        return Err(Error::Input(format!("images have the shape {shape}, expected RGB batches [B, 3, H, W]")));
    }
    let size = config.image_size;
    let short = h.min(w);
    let images = crop_strip(images);
    let [_, _, h, w] = images.dims();
    let [height, width] = [h * size / short, w * size / short];
    let images = if [height, width] == [h, w] {
        images
    } else {
        // Bicubic kernels overshoot at edges; pixels stay in range.
        resize_bicubic(images, [height, width]).clamp(-1.0, 1.0)
    };
    let [top, left] = [(height - size) / 2, (width - size) / 2];
    let images = images.slice(s![.., .., top..top + size, left..left + size]);
    Ok(normalize(images, config))
}

/// Crops the ends of a strip, far outside the support of the filter at the centre, by the same number of pixels.
fn crop_strip(images: Tensor<4>) -> Tensor<4> {
    let [_, _, h, w] = images.dims();
    let (short, long) = (h.min(w), h.max(w));
    if long <= MAX_ASPECT * short {
        return images;
    }
    let margin = (long - MAX_ASPECT * short) / 2;
    images.slice_dim(if h < w { 3 } else { 2 }, margin..long - margin)
}

/// Computes (pixel − mean) / std for pixels in [0, 1], as one multiplication and addition on pixels in [−1, 1].
fn normalize(images: Tensor<4>, config: &VisionTransformerConfig) -> Tensor<4> {
    let device = images.device();
    let channel = |values: [f32; 3]| Tensor::<1>::from_floats(values, &device).reshape([1, 3, 1, 1]);
    let mut factor = [0.0; 3];
    let mut offset = [0.0; 3];
    for i in 0..3 {
        factor[i] = 0.5 / config.std[i];
        offset[i] = (0.5 - config.mean[i]) / config.std[i];
    }
    images * channel(factor) + channel(offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Tolerance;

    fn config() -> VisionTransformerConfig {
        VisionTransformerConfig::new([8, 4], [8, 2, 1], 4)
    }

    #[test]
    fn normalises_each_channel() {
        let config = VisionTransformerConfig { mean: [0.5, 0.0, 0.25], std: [0.5, 1.0, 0.25], ..config() };
        // A grey of 0.75 in [0, 1].
        let images = Tensor::<4>::full([1, 3, 8, 8], 0.5, &Device::flex());
        let pixels = preprocess(images, &config).unwrap();
        for (channel, expected) in [0.5, 0.75, 2.0].into_iter().enumerate() {
            let expected = Tensor::<4>::full([1, 1, 8, 8], expected, &Device::flex()).into_data();
            let actual = pixels.clone().slice_dim(1, channel..channel + 1).into_data();
            actual.assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(1e-6, 1e-6));
        }
    }

    #[test]
    fn crops_the_centre_of_wide_and_tall_images() {
        let config = VisionTransformerConfig { mean: [0.5; 3], std: [0.5; 3], ..config() };
        // White in the middle third, black at the sides.
        let band = |range| Tensor::<4>::full([2, 3, 16, 16], if range == 1 { 1.0 } else { -1.0 }, &Device::flex());
        let wide = Tensor::cat(vec![band(0), band(1), band(2)], 3);
        for images in [wide.clone(), wide.swap_dims(2, 3)] {
            let pixels = preprocess(images, &config).unwrap();
            assert_eq!(pixels.dims(), [2, 3, 8, 8]);
            let inner = pixels.slice(s![.., .., 2..6, 2..6]);
            let expected = Tensor::<4>::ones([2, 3, 4, 4], &Device::flex()).into_data();
            inner.into_data().assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(1e-5, 1e-5));
        }
    }

    #[test]
    fn a_strip_is_prepared_as_its_centre() {
        let device = Device::flex();
        let strip = Tensor::<1, Int>::arange(0..301, &device).float() / 150.0 - 1.0;
        let strip = strip.reshape([1, 1, 1, 301]).expand([1, 3, 3, 301]);
        for [strip, centre] in [
            [strip.clone(), strip.clone().slice_dim(3, 140..161)],
            [strip.clone().swap_dims(2, 3), strip.slice_dim(3, 140..161).swap_dims(2, 3)],
        ] {
            let [strip, centre] = [strip, centre].map(|images| preprocess(images, &config()).unwrap().into_data());
            strip.assert_approx_eq::<f32>(&centre, Tolerance::rel_abs(1e-3, 1e-3));
        }
        let long = Tensor::<4>::zeros([1, 3, 1, 16_000], &device);
        assert_eq!(preprocess(long, &config()).unwrap().dims(), [1, 3, 8, 8]);
    }

    #[test]
    fn other_shapes_than_rgb_are_refused() {
        for shape in [[1, 4, 8, 8], [0, 3, 8, 8], [1, 3, 0, 8]] {
            let error = preprocess(Tensor::zeros(shape, &Device::flex()), &config()).unwrap_err();
            assert!(error.to_string().contains("[B, 3, H, W]"), "{error}");
        }
    }
}
