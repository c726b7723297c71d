//! How close sets of embeddings are to one another, and how spread out.

use burn::prelude::*;
use nalgebra::DMatrix;

use super::embeddings::finite;
use crate::pca::{covariance, host_rows, symmetric_eigen};
use crate::{Error, Result, nn};

/// The squared Fréchet distance between the normal distributions that fit two sets of embeddings (Heusel et al. 2017,
/// arXiv 1706.08500, equation 6): |μ_a − μ_b|² + tr(Σ_a + Σ_b − 2 (Σ_a^½ Σ_b Σ_a^½)^½).
///
/// The roots come from symmetric eigendecompositions in `f64`, so singular covariances (fewer rows than columns) have an
/// exact answer too, though small sets overestimate the distance: compare figures for sets of one size only.
///
/// # Shapes
/// - `a`: `[N, D]`, `b`: `[M, D]`
///
/// # Errors
/// [`Error::Mismatch`] for other widths, [`Error::Input`] for fewer than two rows or a value that is not finite.
pub fn frechet_distance(a: Tensor<2>, b: Tensor<2>) -> Result<f64> {
    let ([n, d], [m, other]) = (a.dims(), b.dims());
    if d != other {
        return Err(Error::Mismatch(format!("embeddings of width {d} and {other} cannot be compared")));
    }
    if n.min(m) < 2 {
        let message = format!("a Fréchet distance needs at least two embeddings in each set, got {n} and {m}");
        return Err(Error::Input(message));
    }
    let (mean_a, cov_a) = moments(&host_rows(a, "an embedding for the Fréchet distance")?, d);
    let (mean_b, cov_b) = moments(&host_rows(b, "an embedding for the Fréchet distance")?, d);
    let means: f64 = mean_a.iter().zip(&mean_b).map(|(a, b)| (a - b).powi(2)).sum();
    let root_a = square_root(cov_a.clone())?;
    let product = &root_a * &cov_b * &root_a;
    let (values, _) = symmetric_eigen((&product + product.transpose()) * 0.5)?;
    let cross: f64 = values.iter().map(|value| value.sqrt()).sum();
    Ok((means + cov_a.trace() + cov_b.trace() - 2.0 * cross).max(0.0))
}

/// The mean distance between two samples of one caption, over all pairs and captions: Euclidean, of embeddings brought to
/// unit length, so from 0 (always the same) to 2.
///
/// # Shapes
/// `[N, M, D]`: M samples of each of N captions
///
/// # Errors
/// [`Error::Input`] for no caption, fewer than two samples, or a value that is not finite.
pub fn diversity(samples: Tensor<3>) -> Result<f64> {
    let [n, m, d] = samples.dims();
    if n == 0 || m < 2 {
        return Err(Error::Input(format!(
            "diversity needs at least two samples of a caption, got {m} of {n} captions"
        )));
    }
    let units = nn::l2_normalize(samples.reshape([n * m, d])).reshape([n, m, d]);
    let cosines = finite(units.clone().matmul(units.swap_dims(1, 2)), "a cosine between samples")?; // [N, M, M]
    let pairs = cosines.chunks_exact(m * m).flat_map(|matrix| {
        (0..m).flat_map(move |i| (0..i).map(move |j| (2.0 - 2.0 * f64::from(matrix[i * m + j])).max(0.0).sqrt()))
    });
    Ok(pairs.sum::<f64>() / (n * m * (m - 1) / 2) as f64)
}

/// Mean and covariance of rows of width `d`; the covariance is the unbiased one.
fn moments(rows: &[f64], d: usize) -> (Vec<f64>, DMatrix<f64>) {
    let n = rows.len() / d;
    let mean: Vec<f64> = (0..d).map(|j| rows.iter().skip(j).step_by(d).sum::<f64>() / n as f64).collect();
    let covariance = covariance(rows, &mean) * (n as f64 / (n - 1) as f64);
    (mean, covariance)
}

/// The symmetric root of a covariance.
fn square_root(matrix: DMatrix<f64>) -> Result<DMatrix<f64>> {
    let d = matrix.nrows();
    let (values, vectors) = symmetric_eigen(matrix)?;
    let vectors = DMatrix::from_fn(d, d, |row, column| vectors[column][row]);
    let scaled = DMatrix::from_fn(d, d, |row, column| vectors[(row, column)] * values[column].sqrt());
    Ok(scaled * vectors.transpose())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::standard_normal;
    use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

    fn tensor(values: Vec<f32>, shape: [usize; 2]) -> Tensor<2> {
        Tensor::from_data(TensorData::new(values, shape), &Device::flex())
    }

    fn normal(n: usize, d: usize, seed: u64) -> Tensor<2> {
        tensor(standard_normal(&mut ChaCha8Rng::seed_from_u64(seed), n * d), [n, d])
    }

    #[test]
    fn one_dimension_has_the_closed_form() {
        // (μ_a − μ_b)² + (σ_a − σ_b)²
        let a = tensor(vec![1.0, 3.0, 5.0, 7.0], [4, 1]); // mean 4, variance 20/3
        let b = tensor(vec![-1.0, 0.0, 1.0], [3, 1]); // mean 0, variance 1
        let expected = 16.0 + ((20.0f64 / 3.0).sqrt() - 1.0).powi(2);
        assert!((frechet_distance(a, b).unwrap() - expected).abs() < 1e-9);
    }

    #[test]
    fn axes_that_do_not_commute_have_the_closed_form() {
        // Rows ± a·u with u = (1, 0), and ± b·w with w at 60 degrees to it: both covariances have rank one, and the root
        // of Σ_a^½ Σ_b Σ_a^½ has the trace a·b·cos 60° times the factor n/(n − 1) of the unbiased covariance.
        let (x, y) = (0.5f32, 0.75f32.sqrt());
        let a = tensor(vec![2.0, 0.0, -2.0, 0.0], [2, 2]);
        let b = tensor(vec![3.0 * x, 3.0 * y, -3.0 * x, -3.0 * y], [2, 2]);
        let expected = 2.0 * (4.0 + 9.0 - 2.0 * 2.0 * 3.0 * 0.5);
        let found = frechet_distance(a.clone(), b.clone()).unwrap();
        assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        assert!((frechet_distance(b, a).unwrap() - expected).abs() < 1e-5, "it is symmetric");
    }

    #[test]
    fn full_covariances_with_one_scale_apart() {
        // b = 3 a + c: Σ_b = 9 Σ_a commutes with Σ_a, so the distance is |μ_a − μ_b|² + (3 − 1)² tr Σ_a.
        let a = normal(400, 6, 1);
        let b = a.clone() * 3.0 + 0.5;
        let rows = host_rows(a.clone(), "a").unwrap();
        let (mean, covariance) = moments(&rows, 6);
        let expected = mean.iter().map(|m| (2.0 * m + 0.5).powi(2)).sum::<f64>() + 4.0 * covariance.trace();
        assert!((frechet_distance(a.clone(), b).unwrap() / expected - 1.0).abs() < 1e-5);
        assert!(frechet_distance(a.clone(), a).unwrap() < 1e-9);
    }

    #[test]
    fn diversity_is_the_mean_distance_of_pairs() {
        let device = Device::flex();
        // Right angles: every pair is √2 apart; and three equal samples.
        let axes = Tensor::<3>::from_floats([[[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 5.0]]], &device);
        assert!((diversity(axes.clone()).unwrap() - 2f64.sqrt()).abs() < 1e-6);
        let both = Tensor::cat(vec![axes, Tensor::ones([1, 3, 3], &device)], 0);
        assert!((diversity(both).unwrap() - 2f64.sqrt() / 2.0).abs() < 1e-3);
    }

    #[test]
    fn sets_without_a_figure_are_refused() {
        let message = |a, b| frechet_distance(a, b).unwrap_err().to_string();
        assert!(message(normal(3, 4, 0), normal(3, 5, 1)).contains("width 4 and 5"));
        assert!(message(normal(3, 4, 0), normal(1, 4, 1)).contains("3 and 1"));
        assert!(message(normal(3, 4, 0) * f32::NAN, normal(3, 4, 1)).contains("NaN"));
        assert!(diversity(Tensor::ones([2, 1, 3], &Device::flex())).unwrap_err().to_string().contains("two samples"));
        assert!(diversity(Tensor::ones([2, 2, 3], &Device::flex()) * f32::NAN).is_err());
    }
}
