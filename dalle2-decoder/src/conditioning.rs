//! How the image embedding and the caption enter the decoder (DALL·E 2, section 2.1): the embedding is projected and
//! added to the timestep embedding, and projected into extra context tokens in front of the caption's.

use burn::module::Param;
use burn::nn::{Initializer, Linear, LinearConfig};
use burn::prelude::*;
use burn::tensor::FloatDType;
use dalle2_core::nn::{LayerNorm, LayerNormConfig, layer_norm, linear};
use dalle2_core::{EmbeddingScale, TextCondition, TokenMask};

use crate::{CaptionEncoder, DecoderConfig};

/// Projections of the image embedding and the caption, and the learned embedding that stands for "no image".
#[derive(Module, Debug)]
pub struct Conditioning {
    null_embedding: Param<Tensor<1>>,
    embedding_to_time: Linear,
    pooled_to_time: Option<Linear>,
    embedding_to_context: Linear,
    caption_encoder: Option<CaptionEncoder>,
    caption_to_time: Option<Linear>,
    token_proj: Linear,
    token_norm: LayerNorm,
    n_context: usize,
    #[module(skip)]
    scale: EmbeddingScale,
}

/// The conditions in the form the U-Net takes.
#[derive(Debug, Clone)]
pub struct Condition {
    /// `[B, time_dim]`, to be added to the timestep embedding.
    pub time: Tensor<2>,
    /// `[B, n_context + S, context_dim]`
    pub tokens: Tensor<3>,
    /// `[B, n_context + S]`
    pub mask: TokenMask,
}

impl Condition {
    /// Joins two batches, `self` first.
    pub(crate) fn cat(self, other: Self) -> Self {
        Self {
            time: Tensor::cat(vec![self.time, other.time], 0),
            tokens: Tensor::cat(vec![self.tokens, other.tokens], 0),
            mask: TokenMask::from_keep(Tensor::cat(vec![self.mask.keep(), other.mask.keep()], 0)),
        }
    }
}

/// How the outputs of the projection into context tokens are ordered: ours is token by token; diffusers' is channel by
/// channel, where row c·n + j is channel c of token j.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContextOrder {
    /// From diffusers' order to ours.
    FromChannelsFirst,
    /// From our order to diffusers'.
    ToChannelsFirst,
}

impl Conditioning {
    pub(crate) fn new(config: &DecoderConfig, context_dim: usize, device: &Device) -> Self {
        let (d, time_dim) = (config.embed_dim, config.unet.time_dim());
        let init = Initializer::Normal { mean: 0.0, std: 1.0 };
        Self {
            null_embedding: init.init([d], device),
            embedding_to_time: LinearConfig::new(d, time_dim).init(device),
            pooled_to_time: config.pooled_text.then(|| LinearConfig::new(d, time_dim).init(device)),
            embedding_to_context: LinearConfig::new(d, config.context_tokens * context_dim).init(device),
            caption_encoder: config.caption_encoder.as_ref().map(|encoder| encoder.init(device)),
            caption_to_time: config
                .caption_encoder
                .as_ref()
                .map(|encoder| LinearConfig::new(encoder.d_model, time_dim).init(device)),
            token_proj: LinearConfig::new(
                config.caption_encoder.as_ref().map_or(config.token_width, |encoder| encoder.d_model),
                context_dim,
            )
            .init(device),
            token_norm: LayerNormConfig::new(context_dim).init(device),
            n_context: config.context_tokens,
            scale: config.embedding_scale.clone(),
        }
    }

    /// Scales embeddings from CLIP's space to the space the network reads.
    ///
    /// # Shapes
    /// `[B, D]` -> `[B, D]`
    pub fn scale(&self, embedding: Tensor<2>) -> Tensor<2> {
        self.scale.scale(embedding)
    }

    /// The learned embedding that stands for "no image", already in the network's space.
    ///
    /// # Shapes
    /// `[batch, D]`
    pub fn null(&self, batch: usize) -> Tensor<2> {
        let null = self.null_embedding.val();
        let d = null.dims()[0];
        null.cast(FloatDType::F32).reshape([1, d]).expand([batch, d])
    }

    /// The same projections with the rows of `embedding_to_context`, which are tokens of n_context · width channels, put
    /// from one order into the other.
    pub(crate) fn reorder_context(mut self, order: ContextOrder) -> Self {
        let Linear { weight, bias } = &self.embedding_to_context;
        let [d, rows] = weight.dims();
        let (n, width) = (self.n_context, rows / self.n_context);
        let [outer, inner] = match order {
            ContextOrder::FromChannelsFirst => [width, n],
            ContextOrder::ToChannelsFirst => [n, width],
        };
        let turned = weight.val().reshape([d, outer, inner]).swap_dims(1, 2).reshape([d, rows]);
        let bias = bias.as_ref().map(|bias| bias.val().reshape([outer, inner]).swap_dims(0, 1).reshape([rows]));
        self.embedding_to_context.weight = Param::from_tensor(turned);
        self.embedding_to_context.bias = bias.map(Param::from_tensor);
        self
    }

    /// Combines scaled embeddings with captions.
    ///
    /// # Shapes
    /// `scaled: [B, D]`, `text` of batch B
    ///
    /// # Panics
    /// When the decoder has a caption encoder and `text` comes without token ids.
    pub fn forward(&self, scaled: Tensor<2>, text: &TextCondition) -> Condition {
        let (b, dtype) = (scaled.dims()[0], self.null_embedding.val().dtype());
        let scaled = scaled.cast(dtype);
        let mut time = linear(&self.embedding_to_time, scaled.clone());
        if let Some(pooled) = &self.pooled_to_time {
            time = time + linear(pooled, self.scale.scale(text.pooled.clone()).cast(dtype));
        }
        let tokens = match (&self.caption_encoder, &self.caption_to_time) {
            (Some(encoder), Some(to_time)) => {
                let Some(ids) = text.mask.ids() else { panic!("a caption encoder needs the ids of the tokens") };
                let (tokens, last) = encoder.forward(ids, &text.mask);
                time = time + linear(to_time, last);
                tokens
            }
            _ => text.tokens.clone(),
        };
        let caption = layer_norm(&self.token_norm, linear(&self.token_proj, tokens.cast(dtype)));
        let width = caption.dims()[2];
        let image = linear(&self.embedding_to_context, scaled).reshape([b, self.n_context, width]);
        let visible = Tensor::<2, Bool>::full([b, self.n_context], true, &caption.device());
        Condition {
            time,
            tokens: Tensor::cat(vec![image, caption], 1),
            mask: TokenMask::from_keep(Tensor::cat(vec![visible, text.mask.keep()], 1)),
        }
    }
}
