//! The whole network.

use burn::nn::conv::Conv2d;
use burn::nn::{GroupNorm, GroupNormConfig, Linear, LinearConfig};
use burn::prelude::*;
use burn::tensor::DType;
use dalle2_core::TokenMask;
use dalle2_core::nn::{Resample, concat, conv2d, group_norm_silu, linear, silu, swap_middle, timestep_embedding};

use super::attention::{AttentionBlock, ContextCache};
use super::block::{ResBlock, conv3x3, zero_conv3x3};
use super::config::UNetConfig;

/// U-Net for noisy images; see the [module](super).
#[derive(Module, Debug)]
pub struct UNet {
    pub(crate) conv_in: Conv2d,
    time_linear_1: Linear,
    time_linear_2: Linear,
    down: Vec<Level>,
    mid: Level,
    up: Vec<Level>,
    norm_out: GroupNorm,
    pub(crate) conv_out: Conv2d,
    pub(crate) patch: usize,
    stride: usize,
    base_channels: usize,
}

/// The blocks of one resolution.
#[derive(Module, Debug)]
struct Level {
    resnets: Vec<ResBlock>,
    attentions: Vec<AttentionBlock>,
    resampler: Option<ResBlock>,
}

/// What attention needs of the context, computed once per generation by [`UNet::context`].
#[derive(Debug, Clone)]
pub struct UNetContext {
    /// One entry per attention block, in the order of the forward pass.
    caches: Vec<ContextCache>,
    /// `[B, 1, 1, S]`, true where a context token is masked out.
    padding: Tensor<4, Bool>,
}

impl UNetConfig {
    /// Builds the network with fresh weights.
    ///
    /// # Panics
    /// When the configuration is not valid: call [`UNetConfig::validate`] first.
    pub fn init(&self, device: &Device) -> UNet {
        let first = self.channels[0];
        let pixels = self.patch * self.patch;
        let levels = self.channels.len();
        let attentions = |head_dim: Option<usize>, channels: usize, n: usize| match head_dim {
            Some(head_dim) => (0..n).map(|_| AttentionBlock::new(self, channels, head_dim, device)).collect(),
            None => Vec::new(),
        };

        let mut skips = vec![first];
        let mut current = first;
        let mut down = Vec::with_capacity(levels);
        for (level, &channels) in self.channels.iter().enumerate() {
            let blocks = self.res_blocks(level);
            let mut resnets = Vec::with_capacity(blocks);
            for _ in 0..blocks {
                resnets.push(ResBlock::new(self, current, channels, Resample::Keep, device));
                current = channels;
                skips.push(current);
            }
            let resampler = (level + 1 < levels).then(|| {
                skips.push(current);
                ResBlock::new(self, current, current, Resample::Down, device)
            });
            let head_dim = self.attention[level].then(|| self.head_dim(level));
            down.push(Level { resnets, attentions: attentions(head_dim, channels, blocks), resampler });
        }
        let mid = Level {
            resnets: (0..2).map(|_| ResBlock::new(self, current, current, Resample::Keep, device)).collect(),
            attentions: attentions(self.mid_attention().then(|| self.head_dim(levels - 1)), current, 1),
            resampler: None,
        };
        let mut up = Vec::with_capacity(levels);
        for (level, &channels) in self.channels.iter().enumerate().rev() {
            let blocks = self.res_blocks(level) + 1;
            let mut resnets = Vec::with_capacity(blocks);
            for _ in 0..blocks {
                let skip = skips.pop().unwrap_or_default();
                resnets.push(ResBlock::new(self, current + skip, channels, Resample::Keep, device));
                current = channels;
            }
            let resampler = (level > 0).then(|| ResBlock::new(self, current, current, Resample::Up, device));
            let head_dim = self.up_attention(level).then(|| self.up_head_dim(level));
            up.push(Level { resnets, attentions: attentions(head_dim, channels, blocks), resampler });
        }

        UNet {
            conv_in: conv3x3(self.in_channels * pixels, first).init(device),
            time_linear_1: LinearConfig::new(first, self.time_dim()).init(device),
            time_linear_2: LinearConfig::new(self.time_dim(), self.time_dim()).init(device),
            down,
            mid,
            up,
            norm_out: GroupNormConfig::new(self.n_groups, first).with_epsilon(self.norm_eps()).init(device),
            conv_out: zero_conv3x3(first, self.out_channels * pixels, device),
            patch: self.patch,
            stride: self.stride(),
            base_channels: first,
        }
    }
}

impl UNet {
    /// Embeds timesteps.
    ///
    /// # Shapes
    /// `t: [B]` -> `[B, time_dim]`
    pub fn time_embedding(&self, t: &[usize], device: &Device) -> Tensor<2> {
        let sinusoids = timestep_embedding(t, self.base_channels, device).cast(self.dtype());
        linear(&self.time_linear_2, silu(linear(&self.time_linear_1, sinusoids)))
    }

    /// Projects context tokens for every attention block.
    ///
    /// # Shapes
    /// `tokens: [B, S, context_dim]`, `mask: [B, S]`
    pub fn context(&self, tokens: Tensor<3>, mask: &TokenMask) -> UNetContext {
        let [b, s, _] = tokens.dims();
        let tokens = tokens.cast(self.dtype());
        let caches = self.attentions().filter_map(|attention| attention.cache(tokens.clone())).collect();
        UNetContext { caches, padding: mask.padding().reshape([b, 1, 1, s]) }
    }

    /// Predicts from noisy images; what is predicted is the caller's choice. The output has the element type of `x`,
    /// whatever that of the weights.
    ///
    /// # Shapes
    /// `x: [B, in_channels, H, W]`, `emb: [B, time_dim]` -> `[B, out_channels, H, W]`
    ///
    /// # Panics
    /// When `H` or `W` is not divisible by [`UNetConfig::stride`].
    pub fn forward(&self, x: Tensor<4>, emb: Tensor<2>, context: Option<&UNetContext>) -> Tensor<4> {
        let [_, _, h, w] = x.dims();
        assert!(
            h % self.stride == 0 && w % self.stride == 0 && h > 0 && w > 0,
            "sides of {h} x {w} images must be divisible by {}",
            self.stride
        );
        let (outer, inner) = (x.dtype(), self.dtype());
        let mut run = Run { emb: emb.cast(inner), context, next: 0, masks: Vec::new() };
        let mut x = conv2d(&self.conv_in, pixel_unshuffle(x.cast(inner), self.patch));
        let mut skips = vec![x.clone()];
        for level in &self.down {
            for (i, block) in level.resnets.iter().enumerate() {
                x = run.block(block, level.attentions.get(i), x);
                skips.push(x.clone());
            }
            if let Some(resampler) = &level.resampler {
                x = resampler.forward(x, run.emb.clone());
                skips.push(x.clone());
            }
        }
        for (i, block) in self.mid.resnets.iter().enumerate() {
            x = run.block(block, self.mid.attentions.get(i), x);
        }
        for level in &self.up {
            for (i, block) in level.resnets.iter().enumerate() {
                if let Some(skip) = skips.pop() {
                    x = concat(x, skip, 1);
                }
                x = run.block(block, level.attentions.get(i), x);
            }
            if let Some(resampler) = &level.resampler {
                x = resampler.forward(x, run.emb.clone());
            }
        }
        pixel_shuffle(conv2d(&self.conv_out, group_norm_silu(&self.norm_out, x)), self.patch).cast(outer)
    }

    /// Element type in which everything between input and output is computed: that of the norms, as weights may be
    /// narrower.
    fn dtype(&self) -> DType {
        self.norm_out.gamma.as_ref().map_or(DType::F32, |gamma| gamma.val().dtype())
    }

    fn attentions(&self) -> impl Iterator<Item = &AttentionBlock> {
        self.down.iter().chain(std::iter::once(&self.mid)).chain(&self.up).flat_map(|level| &level.attentions)
    }
}

/// What the blocks of one forward pass share.
struct Run<'a> {
    emb: Tensor<2>,
    context: Option<&'a UNetContext>,
    /// Index of the next attention block's cache.
    next: usize,
    /// Masks made so far, by number of pixels: `[B, 1, 1, S + H*W]`.
    masks: Vec<(usize, Tensor<4, Bool>)>,
}

impl Run<'_> {
    fn block(&mut self, block: &ResBlock, attention: Option<&AttentionBlock>, x: Tensor<4>) -> Tensor<4> {
        let x = block.forward(x, self.emb.clone());
        let Some(attention) = attention else { return x };
        let [b, _, h, w] = x.dims();
        let mask = self.mask(b, h * w, &x.device());
        let cache = self.context.and_then(|context| context.caches.get(self.next));
        self.next += 1;
        attention.forward(x, cache, mask.as_ref())
    }

    fn mask(&mut self, batch: usize, pixels: usize, device: &Device) -> Option<Tensor<4, Bool>> {
        let context = self.context?;
        if let Some((_, mask)) = self.masks.iter().find(|(n, _)| *n == pixels) {
            return Some(mask.clone());
        }
        let visible = Tensor::<4, Bool>::full([batch, 1, 1, pixels], false, device);
        let mask = Tensor::cat(vec![context.padding.clone(), visible], 3);
        self.masks.push((pixels, mask.clone()));
        Some(mask)
    }
}

/// `[B, C, H, W]` -> `[B, C*p*p, H/p, W/p]`
fn pixel_unshuffle(x: Tensor<4>, p: usize) -> Tensor<4> {
    if p == 1 {
        return x;
    }
    let [b, c, h, w] = x.dims();
    let (rows, columns) = (h / p, w / p);
    let x = swap_middle(x.reshape([b * c * h, columns, p, 1])); // [.., rows, p, p, columns]
    let x = swap_middle(x.reshape([b * c, rows, p, p * columns])); // [.., p, rows, p, columns]
    swap_middle(x.reshape([b * c * p, rows, p, columns])).reshape([b, c * p * p, rows, columns])
}

/// `[B, C*p*p, H, W]` -> `[B, C, H*p, W*p]`
fn pixel_shuffle(x: Tensor<4>, p: usize) -> Tensor<4> {
    if p == 1 {
        return x;
    }
    let [b, c, h, w] = x.dims();
    let c = c / (p * p);
    let x = swap_middle(x.reshape([b * c * p, p, h, w])); // [.., p, H, p, W]
    let x = swap_middle(x.reshape([b * c, p, h, p * w])); // [.., H, p, p, W]
    swap_middle(x.reshape([b * c * h * p, p, w, 1])).reshape([b, c, h * p, w * p])
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
