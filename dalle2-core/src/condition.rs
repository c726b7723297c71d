//! The text condition that flows between the stages.

use burn::prelude::*;

/// Which token positions hold text, with the polarity in the names of the methods.
///
/// Burn's attention masks mark what is masked *out*; most checkpoints' masks mark what is *kept*. This type is
/// built from either and gives either, so the polarity is never guessed.
#[derive(Debug, Clone)]
pub struct TokenMask {
    keep: Tensor<2, Bool>,
}

impl TokenMask {
    /// From a mask `[B, S]` that is `true` where a position holds text.
    pub fn from_keep(keep: Tensor<2, Bool>) -> Self {
        Self { keep }
    }

    /// From a mask `[B, S]` that is `true` where a position is padding.
    pub fn from_padding(padding: Tensor<2, Bool>) -> Self {
        Self { keep: padding.bool_not() }
    }

    /// From the number of leading text positions of each row; the other positions up to `length` are padding.
    pub fn from_lengths(lengths: &[usize], length: usize, device: &Device) -> Self {
        let keep: Vec<bool> = lengths.iter().flat_map(|&n| (0..length).map(move |i| i < n)).collect();
        Self { keep: Tensor::from_data(TensorData::new(keep, [lengths.len(), length]), device) }
    }

    /// `[B, S]`, `true` where a position holds text.
    pub fn keep(&self) -> Tensor<2, Bool> {
        self.keep.clone()
    }

    /// `[B, S]`, `true` where a position is padding (Burn's convention for attention masks).
    pub fn padding(&self) -> Tensor<2, Bool> {
        self.keep.clone().bool_not()
    }

    /// `[batch, length]`.
    pub fn dims(&self) -> [usize; 2] {
        self.keep.dims()
    }
}

/// An encoded batch of captions: what a text encoder gives to the prior and the decoder.
#[derive(Debug, Clone)]
pub struct TextCondition {
    /// `[B, D]`: the caption's embedding z_t in CLIP's joint space, as the projection gives it (not normalised).
    pub pooled: Tensor<2>,
    /// `[B, S, W]`: the encoding of each token, after the encoder's final layer norm.
    pub tokens: Tensor<3>,
    /// `[B, S]`: which tokens are text.
    pub mask: TokenMask,
}

impl TextCondition {
    /// Number of captions in the batch.
    pub fn batch_size(&self) -> usize {
        self.pooled.dims()[0]
    }

    /// Repeats every caption `times` times, copies of one caption next to each other.
    ///
    /// # Shapes
    /// `[B, …]` -> `[B * times, …]`
    pub fn repeat_interleave(&self, times: usize) -> Self {
        let [b, d] = self.pooled.dims();
        let [_, s, w] = self.tokens.dims();
        Self {
            pooled: self.pooled.clone().unsqueeze_dim::<3>(1).expand([b, times, d]).reshape([b * times, d]),
            tokens: self.tokens.clone().unsqueeze_dim::<4>(1).expand([b, times, s, w]).reshape([b * times, s, w]),
            mask: TokenMask {
                keep: self.mask.keep.clone().unsqueeze_dim::<3>(1).expand([b, times, s]).reshape([b * times, s]),
            },
        }
    }

    /// Joins two batches of the same token length and widths, `self` first.
    pub fn cat(self, other: Self) -> Self {
        Self {
            pooled: Tensor::cat(vec![self.pooled, other.pooled], 0),
            tokens: Tensor::cat(vec![self.tokens, other.tokens], 0),
            mask: TokenMask { keep: Tensor::cat(vec![self.mask.keep, other.mask.keep], 0) },
        }
    }

    /// The same values on `device`, for example an autodiff device.
    pub fn to_device(&self, device: &Device) -> Self {
        Self {
            pooled: self.pooled.clone().to_device(device),
            tokens: self.tokens.clone().to_device(device),
            mask: TokenMask { keep: self.mask.keep.clone().to_device(device) },
        }
    }
}
