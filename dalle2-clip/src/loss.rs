//! The losses of contrastive training: softmax in both directions (Radford et al. 2021, figure 3) and pairwise sigmoids
//! (Zhai et al. 2023, arXiv 2303.15343).

use std::collections::HashMap;
use std::ops::Range;

use burn::prelude::*;
use burn::tensor::activation::{log_sigmoid, log_softmax};
use burn::tensor::{DType, FloatDType};
use dalle2_core::nn::l2_normalize;

/// Largest value of the logit scale in use, ln 100 (Radford et al. 2021, section 2.5).
pub const MAX_LOGIT_SCALE: f64 = 4.605_170_185_988_092;

/// A loss between the images and captions of a batch, with what is learned of it. Computed in f32.
///
/// Pairs of one class, such as two renderings under one caption, are matches of one another.
#[allow(clippy::large_enum_variant, reason = "one value lives per step")]
#[derive(Debug, Clone)]
pub enum Objective {
    /// Cross entropy from images to captions and back. The matches of a pair share the target probability equally.
    Softmax {
        /// `[1]`, the logarithm of the factor on the cosines; clamped at [`MAX_LOGIT_SCALE`].
        logit_scale: Tensor<1>,
    },
    /// Whether an image and a caption match, for each two of the batch, summed over captions and averaged over images.
    Sigmoid {
        /// `[1]`, the logarithm of the factor on the cosines; clamped at [`MAX_LOGIT_SCALE`].
        logit_scale: Tensor<1>,
        /// `[1]`, added to the scaled cosines.
        logit_bias: Tensor<1>,
    },
}

/// What a part of the batch contributes to the loss.
#[derive(Debug, Clone)]
pub struct LossShare {
    /// Its part of the loss, `[1]`: those of all parts add up to the loss.
    pub loss: Tensor<1>,
    /// Logits of its images (rows) and the captions of the whole batch (columns), `[b, B]`.
    pub logits: Tensor<2>,
}

impl Objective {
    /// The loss of a batch, `[1]`. `targets` holds a class for each pair; without it every pair is a class of its own.
    ///
    /// # Shapes
    /// `[B, D]`, `[B, D]` -> `[1]`; the embeddings need not be normalised
    ///
    /// # Panics
    /// When the two batches differ in size, or `targets` in length.
    pub fn loss(&self, image_embed: Tensor<2>, text_embed: Tensor<2>, targets: Option<&[usize]>) -> Tensor<1> {
        let b = image_embed.dims()[0];
        self.share(image_embed, text_embed, targets, 0..b).loss
    }

    /// What the pairs `rows` contribute to the loss of the batch: their images against all captions, and with softmax
    /// their captions against all images. A process that holds `rows` and has the embeddings of the others computes just
    /// this; the logits in memory are those of `rows`.
    ///
    /// # Shapes
    /// `[B, D]`, `[B, D]`; the embeddings need not be normalised
    ///
    /// # Panics
    /// When the two batches differ in size, `targets` in length, or `rows` is not within the batch.
    pub fn share(
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
                // The whole batch: its table of logits serves both directions, and matching is symmetric.
                let from_images = (log_softmax(logits.clone(), 1) * matches.clone()).sum();
                let from_captions = (log_softmax(logits.clone(), 0) * matches).sum();
                LossShare { loss: (from_images + from_captions) / (-2.0 * b as f64), logits }
            }
            Self::Softmax { .. } => {
                let from_images = (log_softmax(logits.clone(), 1) * matches.clone()).sum();
                let of_captions = part(&text).matmul(image.transpose()) * scale;
                let from_captions = (log_softmax(of_captions, 1) * matches).sum();
                LossShare { loss: (from_images + from_captions) / (-2.0 * b as f64), logits }
            }
            Self::Sigmoid { logit_bias, .. } => {
                let logits = logits + logit_bias.clone().cast(FloatDType::F32).unsqueeze::<2>();
                let sign = matches.greater_scalar(0.0).float().cast(FloatDType::F32) * 2.0 - 1.0;
                LossShare { loss: log_sigmoid(logits.clone() * sign).sum() / -(b as f64), logits }
            }
        }
    }

    /// The factor on the cosines, `[1]`.
    pub fn scale(&self) -> Tensor<1> {
        let (Self::Softmax { logit_scale } | Self::Sigmoid { logit_scale, .. }) = self;
        logit_scale.clone().cast(FloatDType::F32).clamp_max(MAX_LOGIT_SCALE).exp()
    }
}

/// [`Objective::Softmax`] of a whole batch: cross entropy between the pairs, from images to captions and back.
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
    Objective::Softmax { logit_scale }.loss(image_embed, text_embed, targets)
}

/// For each of the pairs `rows` of B the probability 1 / n of each of the n pairs of its class, `[b, B]`.
pub(crate) fn match_probabilities(
    targets: Option<&[usize]>,
    b: usize,
    rows: Range<usize>,
    device: &Device,
) -> Tensor<2> {
    let Some(targets) = targets else {
        return Tensor::<2>::eye(b, device).cast(FloatDType::F32).slice_dim(0, rows);
    };
    assert_eq!(targets.len(), b, "one target class for each of the {b} pairs");
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
        // Two pairs of one class: four matches and no more than the other two pairs' own.
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
                let whole = objective(&scale, &bias).loss(image.clone(), text.clone(), targets);
                let grads = whole.backward();
                let expected = [image.grad(&grads).unwrap(), text.grad(&grads).unwrap()];
                let of_scale = scale.grad(&grads).unwrap();

                let (image, text, scale, bias) = leaves();
                let (mut sum, mut found, mut found_scale) = (0.0, expected.clone().map(|g| g.zeros_like()), 0.0);
                for rows in [0..3, 3..4, 4..7] {
                    let share = objective(&scale, &bias).share(image.clone(), text.clone(), targets, rows.clone());
                    assert_eq!(share.logits.dims(), [rows.len(), 7]);
                    sum += f64::from(share.loss.clone().into_scalar::<f32>());
                    let grads = share.loss.backward();
                    found = [(&image, &found[0]), (&text, &found[1])]
                        .map(|(leaf, sum)| sum.clone() + leaf.grad(&grads).unwrap());
                    found_scale += scale.grad(&grads).unwrap().into_scalar::<f32>();
                }
                assert_close(sum, whole.into_scalar::<f32>().into());
                assert!((found_scale - of_scale.into_scalar::<f32>()).abs() < 1e-5);
                for (found, expected) in found.into_iter().zip(expected) {
                    let close = burn::tensor::Tolerance::rel_abs(1e-5, 1e-6);
                    found.into_data().assert_approx_eq::<f32>(&expected.into_data(), close);
                }
            }
        }
    }
}
