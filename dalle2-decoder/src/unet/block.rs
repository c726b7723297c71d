//! The residual block, which may also halve or double the resolution.

use burn::module::Param;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{
    Dropout, DropoutConfig, GroupNorm, GroupNormConfig, Initializer, Linear, LinearConfig, PaddingConfig2d,
};
use burn::prelude::*;
use dalle2_core::nn::{
    Resample, conv2d, conv2d_add, conv2d_resampled, group_norm_film_silu, group_norm_silu, linear, resample, silu,
};

use super::{TimeConditioning, UNetConfig};

/// Residual block of ADM: norm, SiLU, (resampling), convolution, norm with the timestep, SiLU, convolution.
#[derive(Module, Debug)]
pub struct ResBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Linear,
    norm2: GroupNorm,
    dropout: Dropout,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
    #[module(skip)]
    conditioning: TimeConditioning,
    #[module(skip)]
    resample: Resample,
}

impl ResBlock {
    pub(super) fn new(config: &UNetConfig, c_in: usize, c_out: usize, resample: Resample, device: &Device) -> Self {
        let time_width = match config.time_conditioning {
            TimeConditioning::Film => 2 * c_out,
            TimeConditioning::Additive => c_out,
        };
        let norm =
            |channels| GroupNormConfig::new(config.n_groups, channels).with_epsilon(config.norm_eps()).init(device);
        Self {
            norm1: norm(c_in),
            conv1: conv3x3(c_in, c_out).init(device),
            time_emb_proj: LinearConfig::new(config.time_dim(), time_width).init(device),
            norm2: norm(c_out),
            dropout: DropoutConfig::new(config.dropout).init(),
            conv2: zero_conv3x3(c_out, c_out, device),
            conv_shortcut: (c_in != c_out).then(|| Conv2dConfig::new([c_in, c_out], [1, 1]).init(device)),
            conditioning: config.time_conditioning,
            resample,
        }
    }

    /// Applies the block.
    ///
    /// # Shapes
    /// `x: [B, C_in, H, W]`, `emb: [B, time_dim]` -> `[B, C_out, H', W']` with `H' = H`, `H / 2` or `2 H`
    pub fn forward(&self, x: Tensor<4>, emb: Tensor<2>) -> Tensor<4> {
        let h = conv2d_resampled(&self.conv1, group_norm_silu(&self.norm1, x.clone()), self.resample);
        let emb = linear(&self.time_emb_proj, silu(emb));
        let h = match self.conditioning {
            TimeConditioning::Film => {
                let [scale, shift] = halves(emb);
                group_norm_film_silu(&self.norm2, h, scale, shift)
            }
            TimeConditioning::Additive => {
                let [b, c] = emb.dims();
                group_norm_silu(&self.norm2, h + emb.reshape([b, c, 1, 1])) // [B, C] -> [B, C, 1, 1]
            }
        };
        let h = self.dropout.forward(h);
        match &self.conv_shortcut {
            Some(shortcut) => {
                let h = conv2d(&self.conv2, h);
                conv2d_add(shortcut, resample(x, self.resample), h, Resample::Keep)
            }
            None => conv2d_add(&self.conv2, h, x, self.resample),
        }
    }
}

fn halves(x: Tensor<2>) -> [Tensor<2>; 2] {
    let c = x.dims()[1] / 2;
    [x.clone().slice_dim(1, 0..c), x.slice_dim(1, c..2 * c)]
}

pub(super) fn conv3x3(c_in: usize, c_out: usize) -> Conv2dConfig {
    Conv2dConfig::new([c_in, c_out], [3, 3]).with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
}

pub(super) fn zero_conv3x3(c_in: usize, c_out: usize, device: &Device) -> Conv2d {
    let mut conv = conv3x3(c_in, c_out).with_initializer(Initializer::Zeros).init(device);
    conv.bias = Some(Param::from_tensor(Tensor::zeros([c_out], device)));
    conv
}
