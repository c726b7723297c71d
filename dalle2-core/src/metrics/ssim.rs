//! Structural similarity.

use burn::prelude::*;

use super::embeddings::finite;
use crate::image::gaussian_blur;
use crate::{Error, Result};

/// Taps and deviation of the window.
const WINDOW: (usize, f64) = (11, 1.5);

/// The mean structural similarity of each pair of images (Wang et al. 2004, "Image quality assessment: from error
/// visibility to structural similarity", equation 13), for values in [−1, 1]: 1 for equal images. The window is the paper's
/// Gaussian of 11 × 11 pixels, only where it lies in the image whole; channels are averaged.
///
/// # Shapes
/// - `a`, `b`: `[B, C, H, W]`
/// - output: one number per pair
///
/// # Errors
/// [`Error::Mismatch`] if the shapes differ, [`Error::Input`] for sides below 11 pixels or a value that is not finite.
pub fn ssim(a: Tensor<4>, b: Tensor<4>) -> Result<Vec<f64>> {
    let [batch, c, h, w] = a.dims();
    if a.dims() != b.dims() {
        return Err(Error::Mismatch(format!("images of shape {:?} and {:?} cannot be compared", a.dims(), b.dims())));
    }
    let (taps, sigma) = WINDOW;
    if batch * c == 0 || h.min(w) < taps {
        return Err(Error::Input(format!("images of shape {:?}: sides must have at least {taps} pixels", a.dims())));
    }
    let window = |x: Tensor<4>| {
        let margin = taps / 2;
        gaussian_blur(x, taps, sigma).slice_dim(2, margin..h - margin).slice_dim(3, margin..w - margin)
    };
    let (a, b) = ((a + 1.0) / 2.0, (b + 1.0) / 2.0);
    let (mean_a, mean_b) = (window(a.clone()), window(b.clone()));
    let product = mean_a.clone() * mean_b.clone();
    let squares = mean_a.clone().square() + mean_b.square();
    let covariance = window(a.clone() * b.clone()) - product.clone();
    let variances = window(a.square() + b.square()) - squares.clone();
    let (c1, c2) = (0.01f64.powi(2), 0.03f64.powi(2));
    let map = (product * 2.0 + c1) * (covariance * 2.0 + c2) / ((squares + c1) * (variances + c2));
    let [_, _, rows, columns] = map.dims();
    let means = map.reshape([batch, c * rows * columns]).mean_dim(1);
    Ok(finite(means, "a structural similarity")?.into_iter().map(f64::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(phase: f32, amplitude: f32) -> Tensor<4> {
        let values: Vec<f32> = (0..3 * 400).map(|i| amplitude * (i as f32 * 0.9 + phase).sin()).collect();
        Tensor::from_data(TensorData::new(values, [1, 3, 20, 20]), &Device::flex())
    }

    #[test]
    fn equal_images_have_one_and_opposite_ones_are_below_zero() {
        assert!((ssim(wave(0.0, 0.8), wave(0.0, 0.8)).unwrap()[0] - 1.0).abs() < 1e-5);
        assert!(ssim(wave(0.0, 0.8), -wave(0.0, 0.8)).unwrap()[0] < -0.5);
    }

    #[test]
    fn flat_images_compare_by_brightness_alone() {
        let device = Device::flex();
        let flat = |value: f32| Tensor::<4>::full([2, 1, 11, 13], value, &device);
        // In [0, 1] the values are 0.75 and 0.5.
        let expected = (2.0 * 0.75 * 0.5 + 1e-4) / (0.75 * 0.75 + 0.5 * 0.5 + 1e-4);
        for found in ssim(flat(0.5), flat(0.0)).unwrap() {
            // A variance of zero is the difference of two squares in f32.
            assert!((found - expected).abs() < 1e-3, "{found} is not {expected}");
        }
    }

    #[test]
    fn noise_costs_more_than_a_shift_of_brightness() {
        let shifted = ssim(wave(0.0, 0.6), wave(0.0, 0.6) + 0.1).unwrap()[0];
        let noisy = ssim(wave(0.0, 0.6), wave(0.0, 0.6) + wave(2.0, 0.3)).unwrap()[0];
        assert!(noisy < shifted && shifted < 1.0, "{noisy} {shifted}");
    }

    #[test]
    fn images_that_cannot_be_compared_are_refused() {
        let device = Device::flex();
        let zeros = |shape: [usize; 4]| Tensor::<4>::zeros(shape, &device);
        assert!(ssim(zeros([1, 3, 10, 20]), zeros([1, 3, 10, 20])).unwrap_err().to_string().contains("11 pixels"));
        assert!(matches!(ssim(zeros([1, 3, 12, 12]), zeros([1, 3, 12, 13])), Err(Error::Mismatch(_))));
    }
}
