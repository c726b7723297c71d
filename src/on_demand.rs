//! CLIP's encoders loaded on demand, for [`Residency::OneStage`](crate::Residency). The diffusion stages load their networks
//! on demand themselves, because their configuration contains their widths.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use burn::prelude::*;
use dalle2_core::diffusers::IndexEntry;
use dalle2_core::{Component, FloatType, ImageEncoder, Result, TextCondition, TextEncoder};

type Load<T> = Arc<dyn Fn() -> Result<T> + Send + Sync>;

/// An encoder on disk, with its widths.
pub(crate) struct OnDemand<T> {
    load: Load<T>,
    class: String,
    embed_dim: usize,
    /// Token width and context length of a text encoder.
    tokens: [usize; 2],
    diffusers_faults: Vec<String>,
}

impl<T> fmt::Debug for OnDemand<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OnDemand({})", self.class)
    }
}

impl<T: TextEncoder> OnDemand<T> {
    /// Loads the encoder once, to check it and to store its widths.
    pub(crate) fn text(load: impl Fn() -> Result<T> + Send + Sync + 'static) -> Result<Self> {
        let encoder = load()?;
        let tokens = [encoder.token_width(), encoder.context_length()];
        Ok(Self { tokens, ..Self::new(&encoder, encoder.embed_dim(), load) })
    }
}

impl<T: ImageEncoder> OnDemand<T> {
    /// Loads the encoder once, to check it and to store its width.
    pub(crate) fn image(load: impl Fn() -> Result<T> + Send + Sync + 'static) -> Result<Self> {
        let encoder = load()?;
        Ok(Self::new(&encoder, encoder.embed_dim(), load))
    }
}

impl<T: Component> OnDemand<T> {
    fn new(encoder: &T, embed_dim: usize, load: impl Fn() -> Result<T> + Send + Sync + 'static) -> Self {
        let class = encoder.class_name().to_owned();
        let diffusers_faults = encoder.diffusers_faults();
        Self { load: Arc::new(load), class, embed_dim, tokens: [0; 2], diffusers_faults }
    }
}

impl<T: Component> Component for OnDemand<T> {
    fn class_name(&self) -> &str {
        &self.class
    }

    fn save(&self, dir: &Path, float_type: FloatType) -> Result<()> {
        (self.load)()?.save(dir, float_type)
    }

    fn diffusers_faults(&self) -> Vec<String> {
        self.diffusers_faults.clone()
    }

    fn save_diffusers(&self, root: &Path, float_type: FloatType) -> Result<Vec<IndexEntry>> {
        (self.load)()?.save_diffusers(root, float_type)
    }
}

impl<T: TextEncoder> TextEncoder for OnDemand<T> {
    fn encode(&self, captions: &[&str]) -> Result<TextCondition> {
        (self.load)()?.encode(captions)
    }

    fn count_tokens(&self, caption: &str) -> Result<usize> {
        (self.load)()?.count_tokens(caption)
    }

    fn encode_truncated(&self, captions: &[&str]) -> Result<(TextCondition, usize)> {
        (self.load)()?.encode_truncated(captions)
    }

    fn embed_dim(&self) -> usize {
        self.embed_dim
    }

    fn token_width(&self) -> usize {
        self.tokens[0]
    }

    fn context_length(&self) -> usize {
        self.tokens[1]
    }
}

impl<T: ImageEncoder> ImageEncoder for OnDemand<T> {
    fn encode(&self, images: Tensor<4>) -> Result<Tensor<2>> {
        (self.load)()?.encode(images)
    }

    fn embed_dim(&self) -> usize {
        self.embed_dim
    }
}
