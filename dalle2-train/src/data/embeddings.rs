//! Embedded pairs on disk: the CLIP embeddings of a data set, computed once and trained from many times.
//!
//! ```text
//! embeddings.json            sizes, number of pairs, where they come from
//! null.safetensors           the encoded empty caption
//! shard-00000.safetensors    text [n, D] f32, tokens [n, S, W] f16, mask [n, S] u8, image [n, D] f32
//! …
//! ```
//!
//! Each shard carries its captions and a checksum of its tensors. Each shard is written atomically, so an
//! interrupted run resumes at the first missing one; a damaged one is reported and left out.

mod set;
mod shard;

pub use set::{EmbeddingInfo, EmbeddingSet, EmbeddingWriter};

use burn::prelude::*;

use dalle2_core::{Error, Result, TextCondition};

/// Captions and images in CLIP's space, in pairs.
#[derive(Debug, Clone)]
pub struct EmbeddedPairs {
    /// The captions as text.
    pub captions: Vec<String>,
    /// The encoded captions, batch N.
    pub text: TextCondition,
    /// The embeddings of their images, `[N, D]`, as the encoder gives them.
    pub image: Tensor<2>,
}

impl EmbeddedPairs {
    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.image.dims()[0]
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same values on `device`.
    pub fn to_device(&self, device: &Device) -> Self {
        Self {
            captions: self.captions.clone(),
            text: self.text.to_device(device),
            image: self.image.clone().to_device(device),
        }
    }

    fn check(&self) -> Result<()> {
        let (n, tokens) = (self.len(), self.text.tokens.dims());
        let mask = self.text.mask.dims();
        if self.captions.len() != n || self.text.batch_size() != n || tokens[0] != n || mask != [n, tokens[1]] {
            return Err(Error::Mismatch(format!(
                "{n} image embeddings, {} captions, {} caption embeddings, tokens of shape {tokens:?} and a mask of shape \
                 {mask:?} are not pairs",
                self.captions.len(),
                self.text.batch_size(),
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
