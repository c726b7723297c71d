//! From images of any size to the pixels that the vision tower reads.

use burn::prelude::*;
use dalle2_core::image::resize_bicubic;
use dalle2_core::{Error, Result};

use crate::VisionTransformerConfig;

/// Resizes the short side to the model's size (antialiased bicubic), cuts out the centre and normalises each channel.
///
/// # Shapes
/// `[B, 3, H, W]` in [−1, 1] -> `[B, 3, image_size, image_size]`
///
/// # Errors
/// When the tensor is empty or does not have three channels.
pub fn preprocess(images: Tensor<4>, config: &VisionTransformerConfig) -> Result<Tensor<4>> {
    let [b, c, h, w] = images.dims();
    if c != 3 || b * h * w == 0 {
        let found = format!("[{b}, {c}, {h}, {w}]");
        return Err(Error::Input(format!("images of shape {found}: CLIP reads RGB batches [B, 3, H, W]")));
    }
    let size = config.image_size;
    let short = h.min(w);
    let [height, width] = [h * size / short, w * size / short];
    let images = if [height, width] == [h, w] {
        images
    } else {
        // Bicubic kernels overshoot at edges; pixels do not.
        resize_bicubic(images, [height, width]).clamp(-1.0, 1.0)
    };
    let [top, left] = [(height - size) / 2, (width - size) / 2];
    let images = images.slice(s![.., .., top..top + size, left..left + size]);
    Ok(normalize(images, config))
}

/// (pixel − mean) / std for pixels in [0, 1], as one multiplication and addition on pixels in [−1, 1].
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
            let found = pixels.clone().slice_dim(1, channel..channel + 1).into_data();
            found.assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(1e-6, 1e-6));
        }
    }

    #[test]
    fn keeps_the_centre_of_wide_and_tall_images() {
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
    fn refuses_what_is_not_rgb() {
        for shape in [[1, 4, 8, 8], [0, 3, 8, 8], [1, 3, 0, 8]] {
            let error = preprocess(Tensor::zeros(shape, &Device::flex()), &config()).unwrap_err();
            assert!(error.to_string().contains("[B, 3, H, W]"), "{error}");
        }
    }
}
