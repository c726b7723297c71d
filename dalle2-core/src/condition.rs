//! The text condition of prior and decoder.

use burn::prelude::*;

/// The token positions with text, with the polarity in the names of the methods.
///
/// Burn's attention masks mark masked positions, most checkpoints' masks mark text. This type converts from and to both, so
/// the polarity is explicit.
///
/// It may carry the ids of the tokens, for a stage with its own text transformer.
#[derive(Debug, Clone)]
pub struct TokenMask {
    keep: Tensor<2, Bool>,
    ids: Option<Tensor<2, Int>>,
}

impl TokenMask {
    /// From a mask `[B, S]` that is `true` where a position holds text.
    pub fn from_keep(keep: Tensor<2, Bool>) -> Self {
        Self { keep, ids: None }
    }

    /// From a mask `[B, S]` that is `true` where a position is padding.
    pub fn from_padding(padding: Tensor<2, Bool>) -> Self {
        Self { keep: padding.bool_not(), ids: None }
    }

    /// From the number of leading text positions of each row; the other positions up to `length` are padding.
    pub fn from_lengths(lengths: &[usize], length: usize, device: &Device) -> Self {
        let keep: Vec<bool> = lengths.iter().flat_map(|&n| (0..length).map(move |i| i < n)).collect();
        Self { keep: Tensor::from_data(TensorData::new(keep, [lengths.len(), length]), device), ids: None }
    }

    /// The same mask with the id of each token in the tokenizer's vocabulary, `[B, S]`.
    ///
    /// # Panics
    /// If the ids have another shape.
    pub fn with_ids(self, ids: Tensor<2, Int>) -> Self {
        assert_eq!(ids.dims(), self.dims(), "one id for each position");
        Self { ids: Some(ids), ..self }
    }

    /// The id of each token `[B, S]`, if the encoder provides them.
    pub fn ids(&self) -> Option<Tensor<2, Int>> {
        self.ids.clone()
    }

    /// A range of rows.
    ///
    /// # Panics
    /// If the range leaves the batch.
    pub fn rows(&self, rows: std::ops::Range<usize>) -> Self {
        Self { keep: self.keep.clone().slice_dim(0, rows.clone()), ids: self.ids().map(|ids| ids.slice_dim(0, rows)) }
    }

    /// Concatenates two batches of the same length, `self` first. The result has ids if both have.
    pub fn cat(self, other: Self) -> Self {
        let ids = self.ids.zip(other.ids).map(|(a, b)| Tensor::cat(vec![a, b], 0));
        Self { keep: Tensor::cat(vec![self.keep, other.keep], 0), ids }
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

/// An encoded batch of captions, the input of prior and decoder.
#[derive(Debug, Clone)]
pub struct TextCondition {
    /// `[B, D]`: the caption's embedding z_t in CLIP's joint space, as the projection gives it (not normalised).
    pub pooled: Tensor<2>,
    /// `[B, S, W]`: the encoding of each token, after the encoder's final layer norm.
    pub tokens: Tensor<3>,
    /// `[B, S]`: the positions with text.
    pub mask: TokenMask,
}

/// The two sides of classifier-free guidance.
#[derive(Debug, Clone, Copy)]
pub struct Captions<'a> {
    /// The encoded captions, batch B.
    pub text: &'a TextCondition,
    /// The encoded caption that guidance moves away from, usually the empty one; batch 1.
    pub null: &'a TextCondition,
}

impl TextCondition {
    /// Number of captions in the batch.
    pub fn batch_size(&self) -> usize {
        self.pooled.dims()[0]
    }

    /// Repeats every caption `times` times; copies of a caption are adjacent.
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
                ids: self.mask.ids().map(|ids| ids.unsqueeze_dim::<3>(1).expand([b, times, s]).reshape([b * times, s])),
            },
        }
    }

    /// Selects rows by index, in this order; a row may repeat.
    ///
    /// # Panics
    /// If an index exceeds the batch.
    pub fn select(&self, rows: &[usize]) -> Self {
        let device = self.pooled.device();
        let rows: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
        let rows = Tensor::<1, Int>::from_data(TensorData::new(rows.clone(), [rows.len()]), &device);
        let keep = self.mask.keep.clone().int().select(0, rows.clone()).equal_scalar(1);
        Self {
            pooled: self.pooled.clone().select(0, rows.clone()),
            tokens: self.tokens.clone().select(0, rows.clone()),
            mask: TokenMask { keep, ids: self.mask.ids().map(|ids| ids.select(0, rows)) },
        }
    }

    /// The `count` captions from `first` on.
    ///
    /// # Panics
    /// If the batch is smaller.
    pub fn rows(&self, first: usize, count: usize) -> Self {
        Self {
            pooled: self.pooled.clone().narrow(0, first, count),
            tokens: self.tokens.clone().narrow(0, first, count),
            mask: self.mask.rows(first..first + count),
        }
    }

    /// Concatenates two batches of the same token length and widths, `self` first.
    pub fn cat(self, other: Self) -> Self {
        Self {
            pooled: Tensor::cat(vec![self.pooled, other.pooled], 0),
            tokens: Tensor::cat(vec![self.tokens, other.tokens], 0),
            mask: self.mask.cat(other.mask),
        }
    }

    /// Replaces the rows where `replace` is true by `other`; training drops captions with the encoded empty caption.
    ///
    /// # Shapes
    /// `other`: batch 1, the same token length and widths
    ///
    /// # Panics
    /// If `replace` has another length than the batch.
    pub fn replace_rows(&self, other: &Self, replace: &[bool]) -> Self {
        let b = self.batch_size();
        assert_eq!(replace.len(), b, "one entry for each caption");
        let other = other.repeat_interleave(b);
        let replace = Tensor::<1, Bool>::from_data(TensorData::new(replace.to_vec(), [b]), &self.pooled.device());
        let row = replace.clone().reshape([b, 1]);
        let row_mask = row.clone().expand(self.mask.dims());
        let text = self.mask.keep().bool_and(row_mask.clone().bool_not());
        Self {
            pooled: self.pooled.clone().mask_where(row.expand(self.pooled.dims()), other.pooled),
            tokens: self.tokens.clone().mask_where(replace.reshape([b, 1, 1]).expand(self.tokens.dims()), other.tokens),
            mask: TokenMask {
                ids: self.mask.ids().zip(other.mask.ids()).map(|(a, b)| a.mask_where(row_mask.clone(), b)),
                keep: text.bool_or(other.mask.keep().bool_and(row_mask)),
            },
        }
    }

    /// The same values on `device`, for example an autodiff device.
    pub fn to_device(&self, device: &Device) -> Self {
        Self {
            pooled: self.pooled.clone().to_device(device),
            tokens: self.tokens.clone().to_device(device),
            mask: TokenMask {
                keep: self.mask.keep.clone().to_device(device),
                ids: self.mask.ids().map(|ids| ids.to_device(device)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(values: &[f32], lengths: &[usize], device: &Device) -> TextCondition {
        let b = values.len();
        let column = Tensor::<2>::from_data(TensorData::new(values.to_vec(), [b, 1]), device);
        TextCondition {
            pooled: column.clone().expand([b, 3]),
            tokens: column.reshape([b, 1, 1]).expand([b, 4, 2]),
            mask: TokenMask::from_lengths(lengths, 4, device),
        }
    }

    #[test]
    fn rows_are_replaced_completely() {
        let device = Device::flex();
        let result = text(&[1.0, 2.0, 3.0], &[4, 3, 2], &device)
            .replace_rows(&text(&[9.0], &[1], &device), &[false, true, false]);
        let expected = text(&[1.0, 9.0, 3.0], &[4, 1, 2], &device);
        assert_eq!(result.pooled.into_data(), expected.pooled.into_data());
        assert_eq!(result.tokens.into_data(), expected.tokens.into_data());
        assert_eq!(result.mask.keep().into_data(), expected.mask.keep().into_data());
    }

    #[test]
    fn ids_follow_their_captions() {
        let device = Device::flex();
        let with_ids = |values: &[f32], first: i64| {
            let n = values.len() as i64;
            let ids = Tensor::<1, Int>::arange(first..first + 4 * n, &device).reshape([n as usize, 4]);
            let plain = text(values, &vec![4; values.len()], &device);
            TextCondition { mask: plain.mask.clone().with_ids(ids), ..plain }
        };
        let ids =
            |condition: TextCondition| condition.mask.ids().unwrap().into_data().iter::<i64>().collect::<Vec<_>>();
        let (two, other) = (with_ids(&[1.0, 2.0], 0), with_ids(&[9.0], 50));
        assert_eq!(ids(two.replace_rows(&other, &[true, false])), [50, 51, 52, 53, 4, 5, 6, 7]);
        assert_eq!(ids(other.repeat_interleave(2)), [50, 51, 52, 53, 50, 51, 52, 53]);
        assert_eq!(ids(other.clone().cat(other.clone()).to_device(&device)), [50, 51, 52, 53, 50, 51, 52, 53]);
        assert_eq!(ids(two.select(&[1, 1, 0])), [4, 5, 6, 7, 4, 5, 6, 7, 0, 1, 2, 3]);
        let rows = two.mask.rows(1..2);
        assert_eq!((rows.dims(), rows.ids().unwrap().into_data().iter::<i64>().next()), ([1, 4], Some(4)));
        assert!(other.cat(text(&[1.0], &[1], &device)).mask.ids().is_none(), "half of the ids are none");
    }

    #[test]
    fn repeats_are_adjacent_and_masks_have_both_polarities() {
        let device = Device::flex();
        let result = text(&[1.0, 2.0], &[1, 4], &device).repeat_interleave(2);
        let last = result.rows(3, 1);
        assert_eq!(last.tokens.into_data(), text(&[2.0], &[4], &device).tokens.into_data());
        assert_eq!(last.mask.keep().into_data(), text(&[2.0], &[4], &device).mask.keep().into_data());
        assert_eq!(result.tokens.into_data(), text(&[1.0, 1.0, 2.0, 2.0], &[1, 1, 4, 4], &device).tokens.into_data());
        assert_eq!(TokenMask::from_padding(result.mask.padding()).keep().into_data(), result.mask.keep().into_data());
    }
}
