//! Upper bounds of configurations. They are checked before anything is allocated, so that a damaged or hostile file
//! ends in an error.

use dalle2_core::ConfigError;

/// Number of transformer blocks.
pub(crate) const MAX_LAYERS: usize = 1_000;
/// Widths of encodings, feed-forward parts and embeddings.
pub(crate) const MAX_WIDTH: usize = 1 << 20;
/// Number of tokens.
pub(crate) const MAX_VOCABULARY: usize = 1 << 24;
/// Number of token positions.
pub(crate) const MAX_CONTEXT: usize = 1 << 16;
/// Side of an image in pixels.
pub(crate) const MAX_SIDE: usize = 1 << 14;

/// Checks that a field does not exceed its bound.
pub(crate) fn at_most(field: &str, value: usize, max: usize) -> Result<(), ConfigError> {
    if value > max {
        return Err(ConfigError::new(field, value, format!("must be at most {max}")));
    }
    Ok(())
}
