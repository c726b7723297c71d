//! The losses of contrastive training: softmax in both directions (Radford et al. 2021, figure 3) and pairwise sigmoids
//! (Zhai et al. 2023, arXiv 2303.15343).

use std::collections::HashMap;
use std::ops::Range;

use burn::prelude::*;
use burn::tensor::activation::{log_sigmoid, log_softmax};
use burn::tensor::{DType, FloatDType};
use dalle2_core::nn::l2_normalize;

/// Upper bound of the logit scale of the softmax loss, ln 100 (Radford et al. 2021, section 2.5).
pub(crate) const MAX_LOGIT_SCALE: f64 = 4.605_170_185_988_092;

/// A contrastive loss with its learned parameters. Computed in f32.
///
/// Pairs of one class, such as two renderings of one caption, match each other.
#[allow(clippy::large_enum_variant, reason = "one value lives per step")]
#[derive(Debug, Clone)]
pub(crate) enum Objective {
    /// Cross entropy from images to captions and from captions to images. The matches of a pair share the target
    /// probability equally.
    Softmax {
        /// `[1]`, the logarithm of the factor on the cosines, clamped at [`MAX_LOGIT_SCALE`].
        logit_scale: Tensor<1>,
    },
    /// Binary cross entropy of each image with each caption, summed over captions and averaged over images.
    Sigmoid {
        /// `[1]`, the logarithm of the factor on the cosines. It has no bound: public SigLIP weights exceed ln 100.
        logit_scale: Tensor<1>,
        /// `[1]`, added to the scaled cosines.
        logit_bias: Tensor<1>,
    },
}

/// The contribution of some pairs to the loss of a batch.
#[derive(Debug, Clone)]
pub(crate) struct LossShare {
    /// A summand of the loss, `[1]`.
    pub(crate) loss: Tensor<1>,
    /// Logits of the pairs' images (rows) and all captions of the batch (columns), `[b, B]`.
    pub(crate) logits: Tensor<2>,
}

impl Objective {
    /// Computes the loss of a batch. `targets` has the class of each pair; without it, all classes differ.
    ///
    /// # Shapes
    /// `[B, D]`, `[B, D]` -> `[1]`; the embeddings are normalised here
    ///
    /// # Panics
    /// If the two batches differ in size, or `targets` in length.
    pub(crate) fn loss(&self, image_embed: Tensor<2>, text_embed: Tensor<2>, targets: Option<&[usize]>) -> Tensor<1> {
        let b = image_embed.dims()[0];
        self.share(image_embed, text_embed, targets, 0..b).loss
    }

    /// Computes the contribution of the pairs `rows` to the loss: their images against all captions, and with softmax
    /// their captions against all images. Only the logits of `rows` are in memory.
    ///
    /// # Shapes
    /// `[B, D]`, `[B, D]`; the embeddings are normalised here
    ///
    /// # Panics
    /// If the two batches differ in size, `targets` in length, or `rows` exceeds the batch.
    pub(crate) fn share(
        &self,
        image_embed: Tensor<2>,
        text_embed: Tensor<2>,
        targets: Option<&[usize]>,
        rows: Range<usize>,
    ) -> LossShare {
        let [b, d] = image_embed.dims();
        assert_shape!(text_embed, [b, d]);
        let matches = match_probabilities(targets, b, rows.clone(), &image_embed.device());
        let image = l2_normalize(image_embed.cast(FloatDType::F32));
        let text = l2_normalize(text_embed.cast(FloatDType::F32));
        let scale = self.scale().unsqueeze::<2>();
        let part = |all: &Tensor<2>| if rows.len() == b { all.clone() } else { all.clone().slice_dim(0, rows.clone()) };
        let logits = part(&image).matmul(text.clone().transpose()) * scale.clone();
        match self {
            Self::Softmax { .. } if rows.len() == b => {
                // For a complete batch, one matrix of logits serves both directions, and matching is symmetric.
                let from_images = (log_softmax(logits.clone(), 1) * matches.clone()).sum();
                let from_captions = (log_softmax(logits.clone(), 0) * matches).sum();
                LossShare { loss: (from_images + from_captions) / (-2.0 * b as f64), logits }
            }
            Self::Softmax { .. } => {
                let from_images = (log_softmax(logits.clone(), 1) * matches.clone()).sum();
                let caption_logits = part(&text).matmul(image.transpose()) * scale;
                let from_captions = (log_softmax(caption_logits, 1) * matches).sum();
                LossShare { loss: (from_images + from_captions) / (-2.0 * b as f64), logits }
            }
            Self::Sigmoid { logit_bias, .. } => {
                let logits = logits + logit_bias.clone().cast(FloatDType::F32).unsqueeze::<2>();
                let sign = matches.greater_scalar(0.0).float().cast(FloatDType::F32) * 2.0 - 1.0;
                LossShare { loss: log_sigmoid(logits.clone() * sign).sum() / -(b as f64), logits }
            }
        }
    }

    /// Returns the factor on the cosines, `[1]`.
    pub(crate) fn scale(&self) -> Tensor<1> {
        match self {
            Self::Softmax { logit_scale } => logit_scale.clone().cast(FloatDType::F32).clamp_max(MAX_LOGIT_SCALE).exp(),
            Self::Sigmoid { logit_scale, .. } => logit_scale.clone().cast(FloatDType::F32).exp(),
        }
    }
}

/// Computes CLIP's loss of a batch of pairs: cross entropy from images to captions and from captions to images.
///
/// `logit_scale` is the logarithm of the factor on the cosines, clamped at ln 100. `targets` has the class of each pair;
/// pairs of one class match each other. Without it, all classes differ.
///
/// # Shapes
/// `[B, D]`, `[B, D]`, `[1]` -> `[1]`; the embeddings are normalised here
///
/// # Panics
/// If the two batches differ in size, or `targets` in length.
pub fn contrastive_loss(
    image_embed: Tensor<2>,
    text_embed: Tensor<2>,
    logit_scale: Tensor<1>,
    targets: Option<&[usize]>,
) -> Tensor<1> {
    Objective::Softmax { logit_scale }.loss(image_embed, text_embed, targets)
}

/// Returns the target probabilities of the pairs `rows`, `[b, B]`: 1 / n for each of the n pairs of the same class.
pub(crate) fn match_probabilities(
    targets: Option<&[usize]>,
    b: usize,
    rows: Range<usize>,
    device: &Device,
) -> Tensor<2> {
    let Some(targets) = targets else {
        return Tensor::<2>::eye(b, device).cast(FloatDType::F32).slice_dim(0, rows);
    };
    assert_eq!(targets.len(), b, "one target class per pair");
    let mut sizes = HashMap::new();
    targets.iter().for_each(|class| *sizes.entry(class).or_insert(0u32) += 1);
    let count = rows.len();
    let values: Vec<f32> = targets[rows]
        .iter()
        .flat_map(|class| {
            let share = 1.0 / sizes[class] as f32;
            targets.iter().map(move |other| if other == class { share } else { 0.0 })
        })
        .collect();
    Tensor::from_data(TensorData::new(values, [count, b]), (device, DType::F32))
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
    fn assert_close(actual: f64, expected: f64) {
        assert!((actual - expected).abs() < 1e-5, "{actual} is not {expected}");
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
    fn the_softmax_loss_clamps_its_scale() {
        let device = Device::flex();
        let image = Tensor::<2>::random([4, 6], Distribution::Normal(0.0, 1.0), &device);
        let text = Tensor::<2>::random([4, 6], Distribution::Normal(0.0, 1.0), &device);
        let at = |scale| loss(image.clone(), text.clone(), scale, None);
        assert_close(at(9.0), at(100f64.ln()));
        assert!((at(9.0) - at(4.0)).abs() > 1e-3);
    }

    #[test]
    fn the_sigmoid_loss_does_not_clamp_its_scale() {
        // Public SigLIP weights have scales above 100.
        let device = Device::flex();
        let scalar = |v: f64| Tensor::from_floats([v as f32], &device);
        let objective = Objective::Sigmoid { logit_scale: scalar(117.33f64.ln()), logit_bias: scalar(-12.93) };
        assert!((objective.scale().into_scalar::<f32>() - 117.33).abs() < 1e-3);
        let eye = Tensor::<2>::eye(1, &device);
        let image = Tensor::from_floats([[0.1f32, (0.99f32).sqrt()]], &device);
        let text = Tensor::cat(vec![eye.clone(), eye * 0.0], 1);
        let logit = 117.33f64 * 0.1 - 12.93;
        assert_close(objective.loss(image, text, None).into_scalar::<f32>().into(), (1.0 + (-logit).exp()).ln());
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
        // Without targets, all classes differ.
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

    fn random(seed: u64, device: &Device) -> Tensor<2> {
        let values: Vec<f32> = (0..42).map(|i| ((i * 7 + seed * 13) as f32 * 1.7).sin()).collect();
        Tensor::from_data(TensorData::new(values, [7, 6]), device)
    }

    #[test]
    fn the_sigmoid_loss_has_its_closed_form() {
        // Orthogonal embeddings: logits t + β where the pair is one, β elsewhere.
        let device = Device::flex();
        let eye = Tensor::<2>::eye(4, &device);
        let (t, bias) = (3f64, -1.25f64);
        let scalar = |v: f64| Tensor::from_floats([v as f32], &device);
        let objective = Objective::Sigmoid { logit_scale: scalar(t.ln()), logit_bias: scalar(bias) };
        let ln_sigmoid = |x: f64| -(1.0 + (-x).exp()).ln();
        let expected = -(ln_sigmoid(t + bias) + 3.0 * ln_sigmoid(-bias));
        assert_close(objective.loss(eye.clone() * 2.0, eye.clone(), None).into_scalar::<f32>().into(), expected);
        // Two pairs of one class: four matches, and one of the third pair.
        let embed = Tensor::<2>::from_floats([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], &device);
        let expected = -(5.0 * ln_sigmoid(t + bias) + 4.0 * ln_sigmoid(-bias)) / 3.0;
        let loss = objective.loss(embed.clone(), embed, Some(&[7, 7, 1]));
        assert_close(loss.into_scalar::<f32>().into(), expected);
    }

    #[test]
    fn the_shares_add_up_to_the_loss_and_its_gradients() {
        let device = Device::flex().autodiff();
        let classes = [0, 1, 2, 1, 3, 3, 3];
        for targets in [None, Some(&classes[..])] {
            for kind in ["softmax", "sigmoid"] {
                let leaves = || {
                    let leaf = |v: f32| Tensor::<1>::from_floats([v], &device).require_grad();
                    (random(1, &device).require_grad(), random(2, &device).require_grad(), leaf(1.2), leaf(-0.7))
                };
                let objective = |scale: &Tensor<1>, bias: &Tensor<1>| match kind {
                    "softmax" => Objective::Softmax { logit_scale: scale.clone() },
                    _ => Objective::Sigmoid { logit_scale: scale.clone(), logit_bias: bias.clone() },
                };
                let (image, text, scale, bias) = leaves();
                let total = objective(&scale, &bias).loss(image.clone(), text.clone(), targets);
                let grads = total.backward();
                let expected = [image.grad(&grads).unwrap(), text.grad(&grads).unwrap()];
                let scale_grad = scale.grad(&grads).unwrap();

                let (image, text, scale, bias) = leaves();
                let (mut sum, mut actual, mut actual_scale) = (0.0, expected.clone().map(|g| g.zeros_like()), 0.0);
                for rows in [0..3, 3..4, 4..7] {
                    let share = objective(&scale, &bias).share(image.clone(), text.clone(), targets, rows.clone());
                    assert_eq!(share.logits.dims(), [rows.len(), 7]);
                    sum += f64::from(share.loss.clone().into_scalar::<f32>());
                    let grads = share.loss.backward();
                    actual = [(&image, &actual[0]), (&text, &actual[1])]
                        .map(|(leaf, sum)| sum.clone() + leaf.grad(&grads).unwrap());
                    actual_scale += scale.grad(&grads).unwrap().into_scalar::<f32>();
                }
                assert_close(sum, total.into_scalar::<f32>().into());
                assert!((actual_scale - scale_grad.into_scalar::<f32>()).abs() < 1e-5);
                for (actual, expected) in actual.into_iter().zip(expected) {
                    let close = burn::tensor::Tolerance::rel_abs(1e-5, 1e-6);
                    actual.into_data().assert_approx_eq::<f32>(&expected.into_data(), close);
                }
            }
        }
    }
}
