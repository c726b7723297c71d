//! The trait of image encoders.

use std::fmt::Debug;

use burn::prelude::*;

use super::Component;
use crate::Result;

/// Encodes images as embeddings of the joint space.
pub trait ImageEncoder: Component + Debug + Send + Sync {
    /// Embeds images `[B, 3, H, W]` in [−1, 1] of any size as `[B, D]`: the output of the projection, not normalised.
    ///
    /// # Errors
    /// If the tensor is not a batch of RGB images.
    fn encode(&self, images: Tensor<4>) -> Result<Tensor<2>>;
    /// Width D of the joint embedding space.
    fn embed_dim(&self) -> usize;
}
