//! How far images are from one another.

use burn::prelude::*;

use super::embeddings::finite;
use crate::{Error, Result};

/// Largest difference between two values in [−1, 1].
const RANGE: f64 = 2.0;

/// The mean squared difference of each pair of images, over channels and pixels.
///
/// # Shapes
/// - `a`, `b`: `[B, C, H, W]`
/// - output: one number per pair
///
/// # Errors
/// [`Error::Mismatch`] if the shapes differ, [`Error::Input`] for empty images or a value that is not finite.
pub fn mse(a: Tensor<4>, b: Tensor<4>) -> Result<Vec<f64>> {
    let [batch, c, h, w] = a.dims();
    if a.dims() != b.dims() {
        return Err(Error::Mismatch(format!("images of shape {:?} and {:?} cannot be compared", a.dims(), b.dims())));
    }
    if batch * c * h * w == 0 {
        return Err(Error::Input(format!("images of shape {:?} are empty", a.dims())));
    }
    let means = (a - b).square().reshape([batch, c * h * w]).mean_dim(1);
    Ok(finite(means, "a squared difference")?.into_iter().map(f64::from).collect())
}

/// The peak signal-to-noise ratio of each pair of images in decibel, for values in [−1, 1]: 10·log₁₀(4 / mse); infinite
/// for equal images.
///
/// # Shapes
/// - `a`, `b`: `[B, C, H, W]`
/// - output: one number per pair
///
/// # Errors
/// As [`mse`].
pub fn psnr(a: Tensor<4>, b: Tensor<4>) -> Result<Vec<f64>> {
    Ok(mse(a, b)?.into_iter().map(|mse| 10.0 * (RANGE * RANGE / mse).log10()).collect())
}

/// The mean squared difference between every image of `a` and every image of `b`, for finding the nearest one. Computed
/// as one matrix product, so accurate to about 1e-6 of the images' power; never negative.
///
/// # Shapes
/// - `a`: `[N, C, H, W]`, `b`: `[M, C, H, W]`
/// - output: `[N, M]`
///
/// # Errors
/// [`Error::Mismatch`] if channels or sides differ, [`Error::Input`] if the images are empty.
pub fn pairwise_mse(a: Tensor<4>, b: Tensor<4>) -> Result<Tensor<2>> {
    let [n, c, h, w] = a.dims();
    let m = b.dims()[0];
    if b.dims()[1..] != [c, h, w] {
        return Err(Error::Mismatch(format!("images of shape {:?} and {:?} cannot be compared", a.dims(), b.dims())));
    }
    let size = c * h * w;
    if size == 0 {
        return Err(Error::Input(format!("images of shape {:?} are empty", a.dims())));
    }
    let (a, b) = (a.reshape([n, size]), b.reshape([m, size]));
    let power_a = a.clone().square().sum_dim(1); // [N, 1]
    let power_b = b.clone().square().sum_dim(1).transpose(); // [1, M]
    let distance = power_a + power_b - a.matmul(b.transpose()) * 2.0;
    Ok(distance.clamp_min(0.0) / size as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(values: &[f32]) -> Tensor<4> {
        let data: Vec<f32> = values.iter().flat_map(|v| [*v; 12]).collect();
        Tensor::from_data(TensorData::new(data, [values.len(), 3, 2, 2]), &Device::flex())
    }

    #[test]
    fn closed_forms() {
        let found = mse(images(&[0.0, 1.0, 0.5]), images(&[0.5, -1.0, 0.5])).unwrap();
        assert_eq!(found, [0.25, 4.0, 0.0]);
        let found = psnr(images(&[0.0, 1.0, 0.5]), images(&[0.5, -1.0, 0.5])).unwrap();
        assert!((found[0] - 12.041_199_8).abs() < 1e-6 && found[1] == 0.0 && found[2].is_infinite(), "{found:?}");
    }

    #[test]
    fn every_pair_equals_its_own_comparison() {
        let device = Device::flex();
        let numbers = |n: usize, seed: usize| -> Tensor<4> {
            let values: Vec<f32> = (0..n * 48).map(|i| ((i * 31 + seed * 17) % 97) as f32 / 48.0 - 1.0).collect();
            Tensor::from_data(TensorData::new(values, [n, 3, 4, 4]), &device)
        };
        let (a, b) = (numbers(3, 1), numbers(2, 5));
        let matrix: Vec<f32> = pairwise_mse(a.clone(), b.clone()).unwrap().try_into_vec_as().unwrap();
        for i in 0..3 {
            for j in 0..2 {
                let pair = mse(a.clone().slice(s![i..i + 1]), b.clone().slice(s![j..j + 1])).unwrap()[0];
                assert!((f64::from(matrix[i * 2 + j]) - pair).abs() < 1e-6);
            }
        }
        let own: Vec<f32> = pairwise_mse(a.clone(), a).unwrap().try_into_vec_as().unwrap();
        assert!((0..3).all(|i| (0.0..1e-6).contains(&own[i * 3 + i])), "{own:?}");
    }

    #[test]
    fn images_that_cannot_be_compared_are_refused() {
        let device = Device::flex();
        assert!(mse(images(&[0.0]), images(&[0.0, 1.0])).unwrap_err().to_string().contains("[2, 3, 2, 2]"));
        assert!(psnr(images(&[f32::NAN]), images(&[0.0])).unwrap_err().to_string().contains("NaN"));
        assert!(mse(Tensor::zeros([1, 3, 0, 2], &device), Tensor::zeros([1, 3, 0, 2], &device)).is_err());
        assert!(pairwise_mse(images(&[0.0]), Tensor::zeros([1, 3, 2, 3], &device)).is_err());
    }
}
