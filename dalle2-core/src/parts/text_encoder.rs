//! The trait of text encoders.

use std::fmt::Debug;

use super::Component;
use crate::{Result, TextCondition};

/// Encodes captions as [`TextCondition`]s.
pub trait TextEncoder: Component + Debug + Send + Sync {
    /// Encodes a batch of captions; the empty caption serves as the unconditional side of guidance.
    ///
    /// # Errors
    /// [`Error::CaptionTooLong`](crate::Error::CaptionTooLong) if a caption has more tokens than the context.
    fn encode(&self, captions: &[&str]) -> Result<TextCondition>;
    /// Encodes a batch of captions, truncates those that exceed the context before their end-of-text token, and returns
    /// the number of truncated captions. For training, validation, embedding and scoring; requests use
    /// [`encode`](Self::encode). The default refuses overlong captions.
    ///
    /// # Errors
    /// If a caption cannot be encoded.
    fn encode_truncated(&self, captions: &[&str]) -> Result<(TextCondition, usize)> {
        Ok((self.encode(captions)?, 0))
    }
    /// Counts the tokens of a caption, start and end included. The default encodes the caption.
    ///
    /// # Errors
    /// If the caption cannot be tokenized; for the default, as [`TextEncoder::encode`].
    fn count_tokens(&self, caption: &str) -> Result<usize> {
        let keep = self.encode(&[caption])?.mask.keep();
        Ok(keep.int().sum().into_scalar::<i64>() as usize)
    }
    /// Width D of the joint embedding space.
    fn embed_dim(&self) -> usize;
    /// Width W of the token encodings.
    fn token_width(&self) -> usize;
    /// Number S of token positions.
    fn context_length(&self) -> usize;
}
