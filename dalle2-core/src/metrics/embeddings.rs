//! How close embeddings are to one another, and whether the right one is the closest.

use burn::prelude::*;

use crate::{Error, Result, nn};

/// The cosine of the angle between row i of `a` and row i of `b`, in [−1, 1]; 0 where a row is zero.
///
/// # Shapes
/// - `a`, `b`: `[N, D]`
/// - output: `[N]`
///
/// # Errors
/// [`Error::Mismatch`] if the shapes differ.
pub fn cosine_similarity(a: Tensor<2>, b: Tensor<2>) -> Result<Tensor<1>> {
    if a.dims() != b.dims() {
        return Err(Error::Mismatch(format!(
            "rows of {:?} and {:?} cannot be paired: shapes must agree",
            a.dims(),
            b.dims()
        )));
    }
    Ok((nn::l2_normalize(a) * nn::l2_normalize(b)).sum_dim(1).squeeze_dim(1))
}

/// The cosine between every row of `a` and every row of `b`.
///
/// # Shapes
/// - `a`: `[N, D]`, `b`: `[M, D]`
/// - output: `[N, M]`
///
/// # Errors
/// [`Error::Mismatch`] if the widths differ.
pub fn similarity_matrix(a: Tensor<2>, b: Tensor<2>) -> Result<Tensor<2>> {
    let ([_, width], [_, other]) = (a.dims(), b.dims());
    if width != other {
        return Err(Error::Mismatch(format!("embeddings of width {width} and {other} cannot be compared")));
    }
    Ok(nn::l2_normalize(a).matmul(nn::l2_normalize(b).transpose()))
}

/// CLIPScore (Hessel et al. 2021, equation 1): 2.5 · max(cosine, 0), averaged over the pairs of image and caption.
///
/// # Shapes
/// - `images`, `captions`: `[N, D]`, embeddings of CLIP
///
/// # Errors
/// [`Error::Mismatch`] if the shapes differ, [`Error::Input`] for no pair or a value that is not finite.
pub fn clip_score(images: Tensor<2>, captions: Tensor<2>) -> Result<f64> {
    const WEIGHT: f64 = 2.5;
    let cosines = finite(cosine_similarity(images, captions)?, "a cosine")?;
    if cosines.is_empty() {
        return Err(Error::Input("CLIPScore needs at least one pair of image and caption".into()));
    }
    Ok(cosines.iter().map(|&c| WEIGHT * f64::from(c).max(0.0)).sum::<f64>() / cosines.len() as f64)
}

/// The share of queries whose right answer is among the `k` best. Ties count against the answer, so a model that says
/// the same of everything scores nothing rather than everything.
///
/// # Shapes
/// - `similarity`: `[N, M]`, how well candidate m answers query n: more is better
/// - `targets`: the right candidate of each of the `N` queries
///
/// # Errors
/// [`Error::Input`] if there is no query, `targets` has another length or names no candidate, or a value is not finite.
pub fn retrieval_at_k(similarity: Tensor<2>, targets: &[usize], k: usize) -> Result<f64> {
    let [n, m] = similarity.dims();
    if n == 0 || targets.len() != n {
        return Err(Error::Input(format!("{n} queries and {} right answers: there must be one each", targets.len())));
    }
    if let Some(outside) = targets.iter().find(|&&target| target >= m) {
        return Err(Error::Input(format!("the right answer {outside} is not among the {m} candidates")));
    }
    let values = finite(similarity, "a similarity")?;
    let found = values.chunks_exact(m).zip(targets).filter(|(row, target)| {
        let as_good = row.iter().filter(|&&value| value >= row[**target]).count(); // the answer itself included
        as_good <= k
    });
    Ok(found.count() as f64 / n as f64)
}

/// Reads a tensor back, refusing NaN and infinity.
pub(super) fn finite<const D: usize>(tensor: Tensor<D>, what: &str) -> Result<Vec<f32>> {
    let values: Vec<f32> =
        tensor.try_into_vec_as().map_err(|e| Error::Device(format!("reading a metric back: {e}")))?;
    match values.iter().find(|value| !value.is_finite()) {
        Some(value) => Err(Error::Input(format!("{what} is {value}: the inputs must be finite"))),
        None => Ok(values),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows<const D: usize>(values: &[[f32; D]]) -> Tensor<2> {
        Tensor::from_data(TensorData::new(values.concat(), [values.len(), D]), &Device::flex())
    }

    fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
        x.try_into_vec_as().unwrap()
    }

    #[test]
    fn cosines_do_not_depend_on_lengths() {
        let a = rows(&[[3.0, 4.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]);
        let b = rows(&[[30.0, 40.0], [0.0, 7.0], [1.0, 2.0], [-2.0, -2.0]]);
        for (found, expected) in values(cosine_similarity(a, b).unwrap()).iter().zip([1.0, 0.0, 0.0, -1.0]) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
        let matrix =
            similarity_matrix(rows(&[[1.0, 0.0], [0.0, 2.0]]), rows(&[[5.0, 0.0], [3.0, 4.0], [0.0, -1.0]])).unwrap();
        assert_eq!(matrix.dims(), [2, 3]);
        for (found, expected) in values(matrix).iter().zip([1.0, 0.6, 0.0, 0.0, 0.8, -1.0]) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }

    #[test]
    fn clip_score_ignores_negative_cosines() {
        let score = clip_score(rows(&[[1.0, 0.0], [1.0, 0.0]]), rows(&[[3.0, 4.0], [-1.0, 0.0]])).unwrap();
        assert!((score - 2.5 * 0.6 / 2.0).abs() < 1e-6, "{score}");
    }

    #[test]
    fn retrieval_counts_ranks_and_ties_count_against() {
        let similarity = rows(&[[0.9, 0.5, 0.1], [0.8, 0.7, 0.6], [0.3, 0.2, 0.1]]);
        let at = |k| retrieval_at_k(similarity.clone(), &[0, 1, 2], k).unwrap();
        assert_eq!([at(0), at(1), at(2), at(3)], [0.0, 1.0 / 3.0, 2.0 / 3.0, 1.0]);
        assert_eq!(retrieval_at_k(similarity, &[0, 0, 0], 1).unwrap(), 1.0);
        let all_equal = rows(&[[0.5; 4]; 2]);
        assert_eq!(retrieval_at_k(all_equal.clone(), &[0, 1], 3).unwrap(), 0.0);
        assert_eq!(retrieval_at_k(all_equal, &[0, 1], 4).unwrap(), 1.0);
    }

    #[test]
    fn input_that_has_no_figure_is_refused() {
        let two = rows(&[[1.0, 0.0], [0.0, 1.0]]);
        assert!(cosine_similarity(two.clone(), rows(&[[1.0, 0.0]])).unwrap_err().to_string().contains("[1, 2]"));
        assert!(similarity_matrix(two.clone(), rows(&[[1.0, 0.0, 0.0]])).is_err());
        assert!(clip_score(rows(&[[f32::NAN, 0.0]]), rows(&[[1.0, 0.0]])).is_err());
        assert!(clip_score(Tensor::zeros([0, 2], &Device::flex()), Tensor::zeros([0, 2], &Device::flex())).is_err());
        assert!(retrieval_at_k(two.clone(), &[0], 1).is_err());
        assert!(retrieval_at_k(two, &[0, 2], 1).unwrap_err().to_string().contains("2 candidates"));
        assert!(retrieval_at_k(rows(&[[f32::NAN, 1.0]]), &[1], 1).is_err());
    }
}
