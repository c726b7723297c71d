//! The trait of text encoders.

use std::fmt::Debug;

use super::Component;
use crate::{Result, TextCondition};

/// Encodes captions as [`TextCondition`]s.
pub trait TextEncoder: Component + Debug + Send + Sync {
    /// Encodes a batch of captions; the empty caption serves as the unconditional side of guidance.
    ///
    /// # Errors
    /// If a caption has more tokens than the context, with the caption and both numbers.
    fn encode(&self, captions: &[&str]) -> Result<TextCondition>;
    /// Width D of the joint embedding space.
    fn embed_dim(&self) -> usize;
    /// Width W of the token encodings.
    fn token_width(&self) -> usize;
    /// Number S of token positions.
    fn context_length(&self) -> usize;
}
