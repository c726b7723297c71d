//! Principal components of embeddings (DALL·E 2, sections 2.2 and 4).
//!
//! The fit runs on the host in `f64`: a covariance matrix has a few hundred rows, and the small eigenvalues that decide
//! how many components are kept would drown in `f32`.

use std::collections::HashMap;
use std::path::Path;

use burn::prelude::*;
use nalgebra::{DMatrix, SymmetricEigen};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::store::write_file;
use crate::{ConfigError, Error, Result};

/// Most sweeps of the eigen-solver for each row of the matrix; it needs a few.
const ITERATIONS_PER_ROW: usize = 100;

/// How many principal components are kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Components {
    /// This many.
    Fixed(usize),
    /// As few as explain this share of the variance, in (0, 1].
    Explained(f64),
}

/// The leading principal components of a set of embeddings, in order of decreasing eigenvalue.
///
/// The paper keeps 319 of 1,024 for its CLIP, which lose less than 1 % of the variance.
///
/// ```
/// use burn::prelude::*;
/// use dalle2_core::{Components, EmbeddingPca};
///
/// # fn main() -> dalle2_core::Result<()> {
/// // Points on a line through (1, 0) along (3, 4): one component says everything.
/// let z = Tensor::<2>::from_floats([[1.0, 0.0], [4.0, 4.0], [7.0, 8.0]], &Device::flex());
/// let pca = EmbeddingPca::fit(z.clone(), Components::Explained(0.999))?;
/// assert_eq!(pca.num_components(), 1);
/// let back = pca.inverse(pca.transform(z.clone())?)?;
/// assert!((back - z).abs().max().into_scalar::<f32>() < 1e-5);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingPca {
    /// `[D]`
    mean: Vec<f64>,
    /// `[K, D]` row-major, rows of unit length.
    components: Vec<f64>,
    /// `[K]`, decreasing.
    variances: Vec<f64>,
    /// Variance of all D components together.
    total_variance: f64,
}

impl EmbeddingPca {
    /// Finds the components of the rows of `embeddings`.
    ///
    /// The sign of a component is such that its largest entry is positive, so that a fit can be repeated.
    ///
    /// # Shapes
    /// `[N, D]`
    ///
    /// # Errors
    /// - [`Error::Input`] when there are no rows, a value is not finite, or all rows are the same;
    /// - [`Error::Config`] when more components are asked for than there are rows or columns, or a share of the
    ///   variance is not in (0, 1].
    pub fn fit(embeddings: Tensor<2>, keep: Components) -> Result<Self> {
        let [n, d] = embeddings.dims();
        if n == 0 || d == 0 {
            return Err(Error::Input(format!("principal components of a set of shape [{n}, {d}]: the set is empty")));
        }
        check_components(keep, n, d)?;
        let rows = host_rows(embeddings, "an embedding for the principal components")?;
        let mean: Vec<f64> = (0..d).map(|j| rows.iter().skip(j).step_by(d).sum::<f64>() / n as f64).collect();
        let (values, vectors) = symmetric_eigen(covariance(&rows, &mean))?;
        let total_variance: f64 = values.iter().sum();
        if total_variance <= 0.0 {
            return Err(Error::Input(format!("all {n} embeddings are the same: they have no principal components")));
        }
        let count = match keep {
            Components::Fixed(count) => count,
            Components::Explained(share) => explaining(&values, share * total_variance),
        };
        let components = vectors.into_iter().take(count).flat_map(with_sign).collect();
        Ok(Self { mean, components, variances: values[..count].to_vec(), total_variance })
    }

    /// Number K of components.
    pub fn num_components(&self) -> usize {
        self.variances.len()
    }

    /// Width D of the embeddings.
    pub fn embed_dim(&self) -> usize {
        self.mean.len()
    }

    /// The variance along each component, decreasing.
    pub fn variances(&self) -> &[f64] {
        &self.variances
    }

    /// Share of the variance that the first `count` components explain, in [0, 1].
    pub fn explained(&self, count: usize) -> f64 {
        self.variances.iter().take(count).sum::<f64>() / self.total_variance
    }

    /// The coordinates of embeddings along the components.
    ///
    /// # Shapes
    /// `[B, D]` -> `[B, K]`, on the device of the input
    ///
    /// # Errors
    /// [`Error::Mismatch`] for another width, [`Error::Input`] for a value that is not finite.
    pub fn transform(&self, embeddings: Tensor<2>) -> Result<Tensor<2>> {
        let (device, batch) = (embeddings.device(), embeddings.dims()[0]);
        let values = self.coordinates(embeddings)?;
        Ok(to_tensor(&values, [batch, self.num_components()], &device))
    }

    /// [`Self::transform`] on the host, row-major.
    ///
    /// # Errors
    /// As [`Self::transform`].
    pub fn coordinates(&self, embeddings: Tensor<2>) -> Result<Vec<f64>> {
        self.check_width("embeddings", embeddings.dims()[1], self.embed_dim())?;
        let d = self.embed_dim();
        let rows = host_rows(embeddings, "an embedding for the principal components")?;
        let project = |row: &[f64]| -> Vec<f64> {
            let along =
                |component: &[f64]| row.iter().zip(&self.mean).zip(component).map(|((x, m), c)| (x - m) * c).sum();
            self.components.chunks_exact(d).map(along).collect()
        };
        Ok(rows.chunks_exact(d).flat_map(project).collect())
    }

    /// The embeddings that have these coordinates along the first k components, and none along the others. k may be
    /// smaller than K, which is the probe of section 4.
    ///
    /// # Shapes
    /// `[B, k]` -> `[B, D]`, on the device of the input
    ///
    /// # Errors
    /// [`Error::Mismatch`] when k is above K, [`Error::Input`] for a value that is not finite.
    pub fn inverse(&self, coordinates: Tensor<2>) -> Result<Tensor<2>> {
        let ([batch, k], device) = (coordinates.dims(), coordinates.device());
        if k > self.num_components() {
            self.check_width("coordinates", k, self.num_components())?;
        }
        let rows = host_rows(coordinates, "a coordinate along the principal components")?;
        Ok(to_tensor(&self.embeddings_at(&rows, k), [batch, self.embed_dim()], &device))
    }

    /// [`Self::inverse`] on the host, for `k` coordinates in each row, row-major.
    ///
    /// # Panics
    /// When `k` is 0 or above K.
    pub fn embeddings_at(&self, coordinates: &[f64], k: usize) -> Vec<f64> {
        assert!((1..=self.num_components()).contains(&k), "{k} of {} components", self.num_components());
        let d = self.embed_dim();
        let back = |row: &[f64]| -> Vec<f64> {
            row.iter().zip(self.components.chunks_exact(d)).fold(self.mean.clone(), |mut sum, (value, component)| {
                sum.iter_mut().zip(component).for_each(|(sum, c)| *sum += value * c);
                sum
            })
        };
        coordinates.chunks_exact(k).flat_map(back).collect()
    }

    /// What is lost when embeddings are replaced by their K coordinates: the mean squared error of the reconstruction as a
    /// share of the variance of the set that was fitted.
    ///
    /// # Errors
    /// As [`Self::transform`].
    pub fn reconstruction_error(&self, embeddings: Tensor<2>) -> Result<f64> {
        let (d, n) = (self.embed_dim(), embeddings.dims()[0].max(1) as f64);
        let coordinates = self.coordinates(embeddings.clone())?;
        let back = self.embeddings_at(&coordinates, self.num_components());
        let rows = host_rows(embeddings, "an embedding")?;
        debug_assert_eq!(rows.len() % d, 0);
        let squared: f64 = rows.iter().zip(&back).map(|(a, b)| (a - b).powi(2)).sum();
        Ok(squared / n / self.total_variance)
    }

    /// Writes mean, components and variances as 64-bit tensors to a safetensors file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let bytes = |values: &[f64]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
        let (k, d) = (self.num_components(), self.embed_dim());
        let tensors = [
            ("mean", vec![d], bytes(&self.mean)),
            ("components", vec![k, d], bytes(&self.components)),
            ("variances", vec![k], bytes(&self.variances)),
            ("total_variance", vec![1], bytes(&[self.total_variance])),
        ];
        let mut views = Vec::with_capacity(tensors.len());
        for (name, shape, bytes) in &tensors {
            let view = TensorView::new(Dtype::F64, shape.clone(), bytes);
            views.push((*name, view.map_err(|e| Error::format(path, format!("tensor {name}: {e}")))?));
        }
        let header = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let bytes = safetensors::serialize(views, Some(header)).map_err(|e| Error::format(path, e.to_string()))?;
        write_file(path, &bytes)
    }

    /// Reads what [`Self::save`] wrote.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged, or its tensors do not fit each other; the tensor is named.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let file = SafeTensors::deserialize(&bytes)
            .map_err(|e| Error::format(path, format!("not a complete safetensors file ({e})")))?;
        let read = |name: &str| doubles(&file, name).map_err(|message| Error::format(path, message));
        let ((_, mean), (shape, components)) = (read("mean")?, read("components")?);
        let ((_, variances), (_, total)) = (read("variances")?, read("total_variance")?);
        if shape != [variances.len(), mean.len()] || total.len() != 1 || variances.is_empty() {
            let (k, d) = (variances.len(), mean.len());
            let message = format!("components have shape {shape:?}, but there are {k} variances and a mean of {d}");
            return Err(Error::format(path, message));
        }
        Ok(Self { mean, components, variances, total_variance: total[0] })
    }

    fn check_width(&self, what: &str, found: usize, expected: usize) -> Result<()> {
        if found == expected {
            return Ok(());
        }
        let (k, d) = (self.num_components(), self.embed_dim());
        Err(Error::Mismatch(format!("{what} of width {found} for {k} principal components of embeddings of width {d}")))
    }
}

fn check_components(keep: Components, n: usize, d: usize) -> Result<(), ConfigError> {
    match keep {
        Components::Fixed(count) if !(1..=n.min(d)).contains(&count) => {
            let expected = format!("must be between 1 and {}: there are {n} embeddings of width {d}", n.min(d));
            Err(ConfigError::new("components", count, expected))
        }
        Components::Explained(share) if !(share > 0.0 && share <= 1.0) => {
            Err(ConfigError::new("explained", share, "must be above 0 and at most 1"))
        }
        _ => Ok(()),
    }
}

/// The rows of a tensor in `f64`, refusing values that are not finite.
pub(crate) fn host_rows(tensor: Tensor<2>, what: &str) -> Result<Vec<f64>> {
    let width = tensor.dims()[1];
    let values: Vec<f32> =
        tensor.try_into_vec_as().map_err(|e| Error::Device(format!("reading embeddings back: {e}")))?;
    match values.iter().position(|v| !v.is_finite()) {
        Some(i) => Err(Error::Input(format!("{what} is not finite: row {} holds {}", i / width.max(1), values[i]))),
        None => Ok(values.into_iter().map(f64::from).collect()),
    }
}

fn to_tensor(values: &[f64], shape: [usize; 2], device: &Device) -> Tensor<2> {
    let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Covariance of rows about `mean`, divided by their number.
pub(crate) fn covariance(rows: &[f64], mean: &[f64]) -> DMatrix<f64> {
    let (d, n) = (mean.len(), rows.len() / mean.len());
    let centred = DMatrix::from_fn(d, n, |j, i| rows[i * d + j] - mean[j]); // a column per row
    &centred * centred.transpose() / n as f64
}

/// Eigenvalues in decreasing order, those below 0 by rounding set to 0, and their unit vectors.
pub(crate) fn symmetric_eigen(matrix: DMatrix<f64>) -> Result<(Vec<f64>, Vec<Vec<f64>>)> {
    let size = matrix.nrows();
    let eigen = SymmetricEigen::try_new(matrix, f64::EPSILON, size * ITERATIONS_PER_ROW)
        .ok_or_else(|| Error::Input(format!("the eigenvalues of a covariance of {size} rows did not converge")))?;
    let mut order: Vec<usize> = (0..size).collect();
    order.sort_by(|a, b| eigen.eigenvalues[*b].total_cmp(&eigen.eigenvalues[*a]));
    let values = order.iter().map(|i| eigen.eigenvalues[*i].max(0.0)).collect();
    let vectors = order.iter().map(|i| eigen.eigenvectors.column(*i).iter().copied().collect()).collect();
    Ok((values, vectors))
}

/// How many of the decreasing `values` sum up to `target`, at least one.
fn explaining(values: &[f64], target: f64) -> usize {
    let mut sum = 0.0;
    let reached = values.iter().position(|value| {
        sum += value;
        sum >= target * (1.0 - 1e-12)
    });
    reached.map_or(values.len(), |i| i + 1)
}

fn with_sign(mut vector: Vec<f64>) -> Vec<f64> {
    let largest = vector.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap_or(0.0);
    if largest < 0.0 {
        vector.iter_mut().for_each(|v| *v = -*v);
    }
    vector
}

fn doubles(file: &SafeTensors<'_>, name: &str) -> Result<(Vec<usize>, Vec<f64>), String> {
    let view = file.tensor(name).map_err(|_| format!("tensor {name} is missing"))?;
    if view.dtype() != Dtype::F64 {
        return Err(format!("tensor {name} has element type {:?}, expected F64", view.dtype()));
    }
    let number = |b: &[u8]| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
    let values: Vec<f64> = view.data().chunks_exact(8).map(number).collect();
    match values.iter().position(|v| !v.is_finite()) {
        Some(i) => Err(format!("tensor {name}: element {i} is {}; it must be finite", values[i])),
        None => Ok((view.shape().to_vec(), values)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::standard_normal;
    use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

    /// Rows with deviations 4, 2 and 1 along three orthogonal directions of five, about a mean.
    fn cloud(n: usize) -> Tensor<2> {
        let normal = standard_normal(&mut ChaCha8Rng::seed_from_u64(3), 3 * n);
        let axes = [[0.6, 0.8, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.6, -0.8], [0.0, 0.0, 1.0, 0.0, 0.0]];
        let row = |x: &[f32]| -> Vec<f32> {
            (0..5)
                .map(|j| 1.0 + j as f32 + (0..3).map(|k| x[k] * [4.0, 2.0, 1.0][k] * axes[k][j]).sum::<f32>())
                .collect()
        };
        let values: Vec<f32> = normal.chunks_exact(3).flat_map(row).collect();
        Tensor::from_data(TensorData::new(values, [n, 5]), &Device::flex())
    }

    fn largest(x: Tensor<2>) -> f32 {
        x.abs().max().into_scalar::<f32>()
    }

    #[test]
    fn finds_the_axes_in_order_and_their_variances() {
        let pca = EmbeddingPca::fit(cloud(4000), Components::Fixed(3)).unwrap();
        for (found, expected) in pca.variances().iter().zip([16.0, 4.0, 1.0]) {
            assert!((found / expected - 1.0).abs() < 0.1, "{found} {expected}");
        }
        for (k, j, expected) in [(0, 0, 0.6), (0, 1, 0.8), (1, 3, -0.6), (1, 4, 0.8), (2, 2, 1.0)] {
            assert!((pca.components[k * 5 + j] - expected).abs() < 0.03, "{:?}", pca.components);
        }
        assert!((pca.explained(1) - 16.0 / 21.0).abs() < 0.02 && (pca.explained(3) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn coordinates_round_trip_and_fewer_lose_what_they_leave_out() {
        let z = cloud(500);
        let all = EmbeddingPca::fit(z.clone(), Components::Fixed(3)).unwrap();
        assert!(largest(all.inverse(all.transform(z.clone()).unwrap()).unwrap() - z.clone()) < 1e-4);
        assert!(all.reconstruction_error(z.clone()).unwrap() < 1e-10);
        let two = EmbeddingPca::fit(z.clone(), Components::Fixed(2)).unwrap();
        assert!((two.reconstruction_error(z.clone()).unwrap() - (1.0 - two.explained(2))).abs() < 1e-9);
        // The probe: dropping the last coordinate is the same as having kept two.
        let probe = all.inverse(all.transform(z.clone()).unwrap().narrow(1, 0, 2)).unwrap();
        assert!(largest(probe - two.inverse(two.transform(z).unwrap()).unwrap()) < 1e-4);
    }

    #[test]
    fn the_share_of_the_variance_chooses_the_number() {
        let kept = |share| EmbeddingPca::fit(cloud(4000), Components::Explained(share)).unwrap().num_components();
        assert_eq!([kept(0.5), kept(0.8), kept(0.9), kept(0.96), kept(1.0 - 1e-9)], [1, 2, 2, 3, 3]);
    }

    #[test]
    fn saved_and_loaded_it_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pca.safetensors");
        let pca = EmbeddingPca::fit(cloud(50), Components::Fixed(2)).unwrap();
        pca.save(&path).unwrap();
        assert_eq!(EmbeddingPca::load(&path).unwrap(), pca);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 8]).unwrap();
        assert!(EmbeddingPca::load(&path).unwrap_err().to_string().contains("pca.safetensors"));
    }

    #[test]
    fn sets_without_components_are_refused() {
        let device = Device::flex();
        let message = |z: Tensor<2>, keep| EmbeddingPca::fit(z, keep).unwrap_err().to_string();
        assert!(message(Tensor::zeros([0, 4], &device), Components::Fixed(1)).contains("empty"));
        assert!(message(cloud(3), Components::Fixed(4)).contains("`components` = 4: must be between 1 and 3"));
        assert!(message(cloud(9), Components::Fixed(6)).contains("width 5"));
        assert!(message(cloud(9), Components::Explained(1.5)).contains("`explained` = 1.5"));
        assert!(message(Tensor::ones([4, 4], &device), Components::Fixed(1)).contains("the same"));
        let nan = cloud(4).slice_assign(s![2..3, ..], Tensor::full([1, 5], f32::NAN, &device));
        assert!(message(nan, Components::Fixed(1)).contains("row 2 holds NaN"));
        let pca = EmbeddingPca::fit(cloud(9), Components::Fixed(2)).unwrap();
        assert!(pca.transform(Tensor::ones([1, 4], &device)).unwrap_err().to_string().contains("width 4"));
        assert!(pca.inverse(Tensor::ones([1, 3], &device)).unwrap_err().to_string().contains("width 3"));
    }
}
