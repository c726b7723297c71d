//! The symmetric contrastive loss (Radford et al. 2021, figure 3).

use burn::prelude::*;
use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, FloatDType};
use dalle2_core::nn::l2_normalize;

/// Largest value of the logit scale in use, ln 100 (Radford et al. 2021, section 2.5).
pub const MAX_LOGIT_SCALE: f64 = 4.605_170_185_988_092;

/// Cross entropy between the pairs of a batch, from images to captions and back, computed in f32.
///
/// `targets` holds a class for each pair: pairs of one class, such as two renderings under one caption, are matches of
/// one another and share the target probability equally. Without it every pair is a class of its own.
/// `logit_scale` is the logarithm of the factor on the cosines; it is clamped at [`MAX_LOGIT_SCALE`].
///
/// # Shapes
/// `[B, D]`, `[B, D]`, `[1]` -> `[1]`; the embeddings need not be normalised
///
/// # Panics
/// When the two batches differ in size, or `targets` in length.
pub fn contrastive_loss(
    image_embed: Tensor<2>,
    text_embed: Tensor<2>,
    logit_scale: Tensor<1>,
    targets: Option<&[usize]>,
) -> Tensor<1> {
    let b = image_embed.dims()[0];
    let matches = match_probabilities(targets, b, &image_embed.device());
    match_loss(similarity_logits(image_embed, text_embed, logit_scale), matches)
}

/// Scaled cosines of images (rows) and captions (columns) in f32, `[B, B]`.
pub(crate) fn similarity_logits(image_embed: Tensor<2>, text_embed: Tensor<2>, logit_scale: Tensor<1>) -> Tensor<2> {
    let [b, d] = image_embed.dims();
    assert_shape!(text_embed, [b, d]);
    let image = l2_normalize(image_embed.cast(FloatDType::F32));
    let text = l2_normalize(text_embed.cast(FloatDType::F32));
    let scale = logit_scale.cast(FloatDType::F32).clamp_max(MAX_LOGIT_SCALE).exp();
    image.matmul(text.transpose()) * scale.unsqueeze::<2>()
}

/// The loss from logits and the target probabilities of both directions; matching is symmetric, so one table serves both.
pub(crate) fn match_loss(logits: Tensor<2>, matches: Tensor<2>) -> Tensor<1> {
    let b = logits.dims()[0];
    let from_images = (log_softmax(logits.clone(), 1) * matches.clone()).sum();
    let from_captions = (log_softmax(logits, 0) * matches).sum();
    (from_images + from_captions) / (-2.0 * b as f64)
}

/// For each pair the probability 1 / n of each of the n pairs of its class, `[B, B]`.
pub(crate) fn match_probabilities(targets: Option<&[usize]>, b: usize, device: &Device) -> Tensor<2> {
    let Some(targets) = targets else {
        return Tensor::<2>::eye(b, device).cast(FloatDType::F32);
    };
    assert_eq!(targets.len(), b, "one target class for each of the {b} pairs");
    let values: Vec<f32> = targets
        .iter()
        .flat_map(|class| {
            let share = 1.0 / targets.iter().filter(|other| *other == class).count() as f32;
            targets.iter().map(move |other| if other == class { share } else { 0.0 })
        })
        .collect();
    Tensor::from_data(TensorData::new(values, [b, b]), (device, DType::F32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Distribution;

    fn loss(image: Tensor<2>, text: Tensor<2>, scale: f64, targets: Option<&[usize]>) -> f64 {
        let scale = Tensor::from_floats([scale as f32], &image.device());
        contrastive_loss(image, text, scale, targets).into_scalar::<f32>() as f64
    }

    #[track_caller]
    fn assert_close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-5, "{found} is not {expected}");
    }

    #[test]
    fn orthogonal_pairs_give_the_closed_form() {
        // The logits are s on the diagonal and 0 elsewhere, so the loss is ln(e^s + B - 1) - s.
        let eye = Tensor::<2>::eye(5, &Device::flex());
        for s in [0.5f64, 1.0, 3.0] {
            assert_close(loss(eye.clone() * 7.0, eye.clone(), s.ln(), None), (s.exp() + 4.0).ln() - s);
        }
    }

    #[test]
    fn the_scale_is_clamped() {
        let device = Device::flex();
        let image = Tensor::<2>::random([4, 6], Distribution::Normal(0.0, 1.0), &device);
        let text = Tensor::<2>::random([4, 6], Distribution::Normal(0.0, 1.0), &device);
        let at = |scale| loss(image.clone(), text.clone(), scale, None);
        assert_close(at(9.0), at(100f64.ln()));
        assert!((at(9.0) - at(4.0)).abs() > 1e-3);
    }

    #[test]
    fn equal_captions_are_not_negatives_of_one_another() {
        // Two pairs of one class and one of another, logits s where the classes agree and 0 elsewhere: a member of the
        // pair has ln(2 e^s + 1) - s, the single one ln(e^s + 2) - s.
        let device = Device::flex();
        let embed = Tensor::<2>::from_floats([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], &device);
        let s = 2f64;
        let expected = (2.0 * (2.0 * s.exp() + 1.0).ln() + (s.exp() + 2.0).ln()) / 3.0 - s;
        assert_close(loss(embed.clone(), embed.clone(), s.ln(), Some(&[4, 4, 9])), expected);
        // Classes that all differ are what no classes mean.
        let distinct = loss(embed.clone(), embed.clone(), s.ln(), Some(&[0, 1, 2]));
        assert_close(distinct, loss(embed.clone(), embed, s.ln(), None));
    }

    #[test]
    fn both_directions_count() {
        let device = Device::flex();
        let image = Tensor::<2>::random([4, 6], Distribution::Normal(0.0, 1.0), &device);
        let text = Tensor::<2>::random([4, 6], Distribution::Normal(0.0, 1.0), &device);
        assert_close(loss(image.clone(), text.clone(), 2.0, None), loss(text, image, 2.0, None));
    }
}
