//! Metrics of a CLIP: zero-shot classification and retrieval (Radford et al. 2021, section 3.1 and appendix E).
//!
//! All functions take embeddings, so they apply to any pair of encoders.

use burn::prelude::*;
use dalle2_core::nn::l2_normalize;
use dalle2_core::{Error, Result, TextEncoder};

/// Fraction of queries with a match among the top `k` candidates, in both directions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recall {
    /// Number of top candidates.
    pub k: usize,
    /// Fraction of images with a matching caption, in [0, 1].
    pub image_to_text: f64,
    /// Fraction of captions with a matching image, in [0, 1].
    pub text_to_image: f64,
}

/// Embeds class labels for [`classify`]: inserts each label into every template in place of `{}` and averages the unit
/// embeddings. Overlong captions are truncated.
///
/// # Shapes
/// N labels -> `[N, D]`, rows of unit length
///
/// # Errors
/// If there are no labels or templates, a template lacks `{}`, or a caption cannot be encoded.
pub fn embed_labels(encoder: &dyn TextEncoder, labels: &[&str], templates: &[&str]) -> Result<Tensor<2>> {
    if labels.is_empty() || templates.is_empty() {
        return Err(Error::Input("zero-shot classification needs at least one label and one template".into()));
    }
    if let Some(template) = templates.iter().find(|template| !template.contains("{}")) {
        return Err(Error::Input(format!("template {template:?}: must contain {{}}, the place of the label")));
    }
    let mut sum: Option<Tensor<2>> = None;
    for template in templates {
        let captions: Vec<String> = labels.iter().map(|label| template.replace("{}", label)).collect();
        let captions: Vec<&str> = captions.iter().map(String::as_str).collect();
        let embeddings = l2_normalize(encoder.encode_truncated(&captions)?.0.pooled);
        sum = Some(match sum {
            Some(sum) => sum + embeddings,
            None => embeddings,
        });
    }
    sum.map(l2_normalize).ok_or_else(|| Error::Input("no template was encoded".into()))
}

/// Returns the `k` candidates with the highest cosines for each query, best first, with their cosines.
///
/// # Shapes
/// `[Q, D]`, `[N, D]` -> Q lists of `min(k, N)`
///
/// # Errors
/// If the widths differ or an embedding is not finite.
pub fn classify(queries: Tensor<2>, candidates: Tensor<2>, k: usize) -> Result<Vec<Vec<(usize, f32)>>> {
    Ok(cosines(queries, candidates)?.iter().map(|row| top_k(row, k)).collect())
}

/// Returns the fraction of queries with the correct candidate among the top `k`, for each `k`.
///
/// `classes` has the index of the correct candidate of each query.
///
/// # Errors
/// If there are no queries, `classes` has another length, or the widths of the embeddings differ.
pub fn top_k_accuracy(queries: Tensor<2>, candidates: Tensor<2>, classes: &[usize], ks: &[usize]) -> Result<Vec<f64>> {
    let ranks = ranks(&cosines(queries, candidates)?, classes, |candidate| candidate)?;
    Ok(ks.iter().map(|&k| fraction_within(&ranks, k)).collect())
}

/// Computes retrieval among N pairs, for each `k`.
///
/// `classes` has the class of each pair. Candidates of the query's class are correct, so that a repeated caption is not
/// counted as an error.
///
/// # Shapes
/// `[N, D]`, `[N, D]`
///
/// # Errors
/// If there are no pairs, `classes` has another length, or the widths of the embeddings differ.
pub fn retrieval(
    image_embed: Tensor<2>,
    text_embed: Tensor<2>,
    classes: &[usize],
    ks: &[usize],
) -> Result<Vec<Recall>> {
    let [images, texts] = [image_embed.dims()[0], text_embed.dims()[0]];
    if images != texts {
        return Err(Error::Input(format!(
            "{images} image embeddings and {texts} caption embeddings: the numbers must be equal"
        )));
    }
    if classes.len() != images {
        return Err(Error::Input(format!("{} classes and {images} pairs: the numbers must be equal", classes.len())));
    }
    let class_of = |candidate: usize| classes[candidate];
    let to_text = ranks(&cosines(image_embed.clone(), text_embed.clone())?, classes, class_of)?;
    let to_image = ranks(&cosines(text_embed, image_embed)?, classes, class_of)?;
    let recall =
        |&k| Recall { k, image_to_text: fraction_within(&to_text, k), text_to_image: fraction_within(&to_image, k) };
    Ok(ks.iter().map(recall).collect())
}

/// Computes the cosines of each query with all candidates.
fn cosines(queries: Tensor<2>, candidates: Tensor<2>) -> Result<Vec<Vec<f32>>> {
    let ([_, d], [n, candidate_d]) = (queries.dims(), candidates.dims());
    if d != candidate_d {
        return Err(Error::Input(format!(
            "embeddings have {d} and {candidate_d} components: the widths must be equal"
        )));
    }
    let cosines = l2_normalize(queries).matmul(l2_normalize(candidates).transpose());
    let values: Vec<f32> = cosines.into_data().iter::<f32>().collect();
    if values.iter().any(|v| !v.is_finite()) {
        return Err(Error::Input("an embedding has a value that is not finite".into()));
    }
    Ok(values.chunks(n.max(1)).map(<[f32]>::to_vec).collect())
}

fn top_k(row: &[f32], k: usize) -> Vec<(usize, f32)> {
    let mut order: Vec<(usize, f32)> = row.iter().copied().enumerate().collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    order.truncate(k);
    order
}

/// Counts, for each query, the candidates of other classes with a cosine of at least the best correct one. Ties count as
/// errors, so that a collapsed model has no recall.
fn ranks(rows: &[Vec<f32>], classes: &[usize], class_of: impl Fn(usize) -> usize) -> Result<Vec<usize>> {
    if rows.is_empty() || rows.len() != classes.len() {
        return Err(Error::Input(format!(
            "{} queries and {} classes: the numbers must be equal and at least 1",
            rows.len(),
            classes.len()
        )));
    }
    rows.iter()
        .zip(classes)
        .map(|(row, &class)| {
            let correct = row.iter().enumerate().filter(|(i, _)| class_of(*i) == class).map(|(_, &v)| v);
            let best = correct.max_by(f32::total_cmp);
            let best = best.ok_or_else(|| Error::Input(format!("class {class} has no candidate")))?;
            Ok(row.iter().enumerate().filter(|(i, v)| class_of(*i) != class && **v >= best).count())
        })
        .collect()
}

fn fraction_within(ranks: &[usize], k: usize) -> f64 {
    ranks.iter().filter(|rank| **rank < k).count() as f64 / ranks.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use dalle2_core::{TextCondition, TokenMask};

    fn tensor(rows: &[[f32; 2]]) -> Tensor<2> {
        Tensor::from_data(TensorData::new(rows.concat(), [rows.len(), 2]), &Device::flex())
    }

    #[test]
    fn the_nearest_come_first() {
        let candidates = tensor(&[[1.0, 0.0], [0.0, 5.0], [-1.0, 0.0]]);
        let answers = classify(tensor(&[[0.1, 2.0], [-3.0, -1.0]]), candidates.clone(), 2).unwrap();
        let order: Vec<Vec<usize>> = answers.iter().map(|row| row.iter().map(|(i, _)| *i).collect()).collect();
        assert_eq!(order, [[1, 0], [2, 1]]);
        assert!((answers[1][0].1 - 3.0 / 10f32.sqrt()).abs() < 1e-5);

        let queries = tensor(&[[0.1, 2.0], [-3.0, -1.0]]);
        assert_eq!(top_k_accuracy(queries, candidates, &[0, 2], &[1, 2]).unwrap(), [0.5, 1.0]);
    }

    #[test]
    fn retrieval_counts_both_directions_and_equal_captions() {
        // Image 0 and caption 0 agree, images 1 and 2 are swapped.
        let images = tensor(&[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]);
        let texts = tensor(&[[1.0, 0.1], [-1.0, 0.1], [0.0, 1.0]]);
        let recall = retrieval(images.clone(), texts.clone(), &[0, 1, 2], &[1, 2]).unwrap();
        let third = 1.0 / 3.0;
        assert_eq!(recall[0], Recall { k: 1, image_to_text: third, text_to_image: third });
        assert_eq!(recall[1].k, 2);
        let recall = retrieval(images, texts, &[0, 1, 1], &[1]).unwrap();
        assert_eq!(recall[0], Recall { k: 1, image_to_text: 1.0, text_to_image: 1.0 });
    }

    #[test]
    fn a_collapsed_model_has_no_recall() {
        let same = tensor(&[[1.0, 0.0]; 4]);
        let recall = retrieval(same.clone(), same, &[0, 1, 2, 3], &[1, 3, 4]).unwrap();
        assert_eq!(recall.iter().map(|r| r.image_to_text).collect::<Vec<_>>(), [0.0, 0.0, 1.0]);
    }

    #[test]
    fn mismatched_inputs_are_errors() {
        let two = tensor(&[[1.0, 0.0], [0.0, 1.0]]);
        let wide = Tensor::<2>::ones([2, 3], &Device::flex());
        assert!(classify(two.clone(), wide, 1).is_err());
        assert!(classify(two.clone(), two.clone() / 0.0, 1).is_err());
        assert!(top_k_accuracy(two.clone(), two.clone(), &[0], &[1]).is_err());
        assert!(top_k_accuracy(two.clone(), two.clone(), &[0, 2], &[1]).is_err());
        assert!(retrieval(two.clone(), tensor(&[[1.0, 0.0]]), &[0, 1], &[1]).is_err());
        assert!(retrieval(two.clone(), two, &[1], &[1]).is_err());
    }

    /// Embeds a caption as (number of characters, number of spaces).
    #[derive(Debug)]
    struct Counter;

    impl dalle2_core::Component for Counter {
        fn class_name(&self) -> &str {
            "Counter"
        }
    }

    impl TextEncoder for Counter {
        fn encode(&self, captions: &[&str]) -> Result<TextCondition> {
            let rows: Vec<[f32; 2]> =
                captions.iter().map(|c| [c.len() as f32, c.matches(' ').count() as f32]).collect();
            let mask = TokenMask::from_lengths(&vec![1; captions.len()], 1, &Device::flex());
            Ok(TextCondition { pooled: tensor(&rows), tokens: tensor(&rows).unsqueeze_dim(1), mask })
        }
        fn embed_dim(&self) -> usize {
            2
        }
        fn token_width(&self) -> usize {
            2
        }
        fn context_length(&self) -> usize {
            1
        }
    }

    #[test]
    fn labels_are_averaged_over_templates() {
        let embeddings = embed_labels(&Counter, &["ab", "a b"], &["{}", "a {}"]).unwrap();
        let unit = |v: [f32; 2]| {
            let norm = v[0].hypot(v[1]);
            [v[0] / norm, v[1] / norm]
        };
        let mean = |a: [f32; 2], b: [f32; 2]| unit([unit(a)[0] + unit(b)[0], unit(a)[1] + unit(b)[1]]);
        let expected = tensor(&[mean([2.0, 0.0], [4.0, 1.0]), mean([3.0, 1.0], [5.0, 2.0])]);
        let tolerance = burn::tensor::Tolerance::rel_abs(1e-5, 1e-6);
        embeddings.into_data().assert_approx_eq::<f32>(&expected.into_data(), tolerance);
        assert!(embed_labels(&Counter, &["ab"], &["no place"]).is_err());
        assert!(embed_labels(&Counter, &[], &["{}"]).is_err());
    }
}
