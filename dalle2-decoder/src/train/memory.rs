//! What the networks keep of a forward pass for the backward pass.

use crate::unet::UNetConfig;
use crate::{DecoderConfig, UpsamplerConfig};

use super::CropOptions;

impl DecoderConfig {
    /// Numbers that the forward pass over one image keeps for the backward pass, about; `context_length` tokens of its caption
    /// are read.
    pub fn kept_per_image(&self, context_length: usize) -> u64 {
        let context = if self.unet.context_dim.is_some() { context_length + self.context_tokens } else { 0 };
        kept(&self.unet, self.image_size, context)
    }
}

impl UpsamplerConfig {
    /// Numbers that the forward pass over one crop keeps for the backward pass, about.
    pub fn kept_per_crop(&self, options: &CropOptions) -> u64 {
        kept(&self.unet, options.side(self).unwrap_or(self.output_size()), 0)
    }
}

/// The layout of the network, block by block.
fn kept(config: &UNetConfig, side: usize, context: usize) -> u64 {
    let pixels = |level: usize| ((side / config.patch) >> level).pow(2) as u64;
    let width = |level: usize| config.channels[level] as u64;
    let levels = config.channels.len();
    let dropout = if config.dropout > 0.0 { 2 } else { 0 };
    // The inputs of both norms and of both convolutions, and the second one's output; a resampled block's first convolution
    // works at the other size.
    let block = |c_in: u64, c_out: u64, from: u64, to: u64| c_in * (from + to) + (3 + dropout) * c_out * to;
    // The norm's input and output, queries, keys and values before and after the context joined them, what attention gives,
    // and its probabilities.
    let attention = |c: u64, head_dim: usize, n: u64| {
        let keys = n + context as u64;
        let joined = if context > 0 { 2 * keys } else { 0 };
        c * (6 * n + joined) + (c / head_dim as u64) * n * keys
    };

    let mut sum = width(0) * pixels(0);
    let (mut current, mut skips) = (width(0), vec![width(0)]);
    for level in 0..levels {
        let (c, n) = (width(level), pixels(level));
        for _ in 0..config.res_blocks(level) {
            sum += block(current, c, n, n);
            sum += if config.attention[level] { attention(c, config.head_dim(level), n) } else { 0 };
            current = c;
            skips.push(c);
        }
        if level + 1 < levels {
            sum += block(c, c, n, pixels(level + 1));
            skips.push(c);
        }
    }
    let n = pixels(levels - 1);
    sum += 2 * block(current, current, n, n);
    sum += if config.mid_attention() { attention(current, config.head_dim(levels - 1), n) } else { 0 };
    for level in (0..levels).rev() {
        let (c, n) = (width(level), pixels(level));
        for _ in 0..=config.res_blocks(level) {
            sum += block(current + skips.pop().unwrap_or(0), c, n, n);
            sum += if config.up_attention(level) { attention(c, config.up_head_dim(level), n) } else { 0 };
            current = c;
        }
        if level > 0 {
            sum += block(c, c, n, pixels(level - 1));
        }
    }
    sum + 2 * current * pixels(0)
}
