//! The U-Net of ADM and GLIDE that serves the decoder and the upsamplers (Dhariwal & Nichol 2021, section 3;
//! Nichol et al. 2021, section 4.1).
//!
//! Attention is chosen level by level, the timestep enters by scale and shift (FiLM) or by addition, every residual
//! block's last convolution starts at zero, and resolution changes inside residual blocks. One thing is ours: an
//! optional pixel-unshuffle stem (`patch`), which turns `p × p` pixels into channels so that a small network can
//! work on few positions.

mod attention;
mod block;
mod config;
mod model;

pub use attention::{AttentionBlock, ContextCache};
pub use block::ResBlock;
pub use config::{TimeConditioning, UNetConfig, UNetVariations};
pub use model::{UNet, UNetContext};
