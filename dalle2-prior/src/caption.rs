//! What both priors do with captions: checking them, masking their padding, choosing the embedding closest to them.

use burn::prelude::*;
use dalle2_core::nn::l2_normalize;
use dalle2_core::{Captions, Error, Result, TextCondition, TokenMask};

/// The form of the captions that a prior reads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CaptionForm {
    pub context_length: usize,
    pub token_width: usize,
    pub embed_dim: usize,
}

impl CaptionForm {
    /// Refuses captions of another form, and values that are not finite.
    pub fn check(self, name: &str, text: &TextCondition) -> Result<()> {
        let ([batch, embed], [tokens_batch, s, w]) = (text.pooled.dims(), text.tokens.dims());
        if [s, w, embed] != [self.context_length, self.token_width, self.embed_dim] {
            return Err(Error::Mismatch(format!(
                "the prior reads {} tokens of width {} and embeddings of width {}; \
                 the {name} has {s} tokens of width {w} and an embedding of width {embed}",
                self.context_length, self.token_width, self.embed_dim
            )));
        }
        if batch == 0 || tokens_batch != batch || text.mask.dims() != [batch, s] {
            return Err(Error::Input(format!(
                "the {name} has {batch} embeddings, {tokens_batch} rows of tokens and a mask of {:?}",
                text.mask.dims()
            )));
        }
        // One number, so one round trip to the device: infinities and NaN survive the sum of magnitudes.
        let sum = text.pooled.clone().abs().sum() + text.tokens.clone().abs().sum();
        match sum.into_scalar::<f32>().is_finite() {
            true => Ok(()),
            false => Err(Error::Input(format!("the encoded {name} for the prior holds a value that is not finite"))),
        }
    }

    /// [`Self::check`] for the captions of a request and the empty one.
    pub fn check_both(self, captions: Captions<'_>) -> Result<()> {
        let Captions { text, null } = captions;
        self.check("caption", text)?;
        self.check("empty caption", null)?;
        match null.batch_size() {
            1 => Ok(()),
            other => Err(Error::Input(format!("one empty caption is needed for guidance, got {other}"))),
        }
    }
}

/// Which tokens a token must not read (`true`): those after it, and padding before it. Padding may read itself, which
/// nothing else does, so that no row masks everything.
///
/// # Shapes
/// `[B, S]` -> `[B, 1, S + extra, S + extra]`
pub(crate) fn attention_mask(mask: &TokenMask, extra: usize) -> Tensor<4, Bool> {
    let padding = mask.padding();
    let ([batch, text], device) = (padding.dims(), padding.device());
    let total = text + extra;
    let triangle = |later: bool| {
        let values: Vec<bool> = (0..total * total)
            .map(|i| (i / total, i % total))
            .map(|(q, k)| if later { k > q } else { k < q })
            .collect();
        Tensor::<4, Bool>::from_data(TensorData::new(values, [1, 1, total, total]), &device)
    };
    let all = [batch, 1, total, total];
    let extra = Tensor::from_data(TensorData::new(vec![false; batch * extra], [batch, extra]), &device);
    let padding = Tensor::cat(vec![padding, extra], 1).reshape([batch, 1, 1, total]).expand(all);
    padding.bool_and(triangle(false).expand(all)).bool_or(triangle(true).expand(all))
}

/// Of each caption's consecutive candidates, the one with the highest cosine to the caption's embedding.
///
/// # Shapes
/// - candidates: `[B * n, D]`
/// - text: `[B, D]`
/// - output: `[B, D]`
pub(crate) fn closest(candidates: Tensor<2>, text: Tensor<2>) -> Tensor<2> {
    let ([rows, d], batch) = (candidates.dims(), text.dims()[0]);
    let n = rows / batch;
    if n == 1 {
        return candidates;
    }
    let images = l2_normalize(candidates.clone()).reshape([batch, n, d]);
    let cosine = (images * l2_normalize(text).unsqueeze_dim::<3>(1)).sum_dim(2).squeeze_dim::<2>(2); // [B, n]
    let best = cosine.argmax(1).unsqueeze_dim::<3>(2).expand([batch, 1, d]);
    candidates.reshape([batch, n, d]).gather(1, best).squeeze_dim::<2>(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_is_causal_and_hides_padding() {
        let device = Device::flex();
        let mask = attention_mask(&TokenMask::from_lengths(&[2], 3, &device), 4);
        assert_eq!(mask.dims(), [1, 1, 7, 7]);
        let hidden: Vec<bool> = mask.into_data().iter::<bool>().collect();
        for (query, row) in hidden.chunks(7).enumerate() {
            for (key, hidden) in row.iter().enumerate() {
                assert_eq!(*hidden, key > query || (key == 2 && query != 2), "query {query}, key {key}");
            }
        }
    }

    #[test]
    fn the_closest_candidate_of_each_caption_is_kept() {
        let device = Device::flex();
        let candidates = Tensor::<2>::from_floats(
            [[1.0, 0.0], [0.5, 0.5], [9.0, 1.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]],
            &device,
        );
        // Lengths do not count: for (0, 3) the third candidate has the largest dot product, the second the largest cosine.
        let text = Tensor::from_floats([[0.0, 3.0], [-2.0, 0.5]], &device);
        let expected = TensorData::from([[0.5f32, 0.5], [-1.0, 0.0]]);
        assert_eq!(closest(candidates, text).into_data(), expected);
    }
}
