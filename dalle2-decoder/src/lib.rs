//! The decoder and the upsamplers of `dalle2`: from CLIP image embeddings and captions to pixels
//! (DALL·E 2, section 2.1).
//!
//! | type | is |
//! |---|---|
//! | [`UnclipDecoder`] | P(x \| z_i, y), a [`dalle2_core::Decoder`] |
//! | [`DiffusionUpsampler`] | P(x_high \| x_low), a [`dalle2_core::Upsampler`] |
//! | [`unet::UNet`] | the network under both |
//! | [`degradation`] | blur, noise and compression of an upsampler's training images |
//! | `train` | their training steps (feature `train`) |

mod caption;
mod channels;
mod conditioning;
mod config;
mod decoder;
pub mod degradation;
mod import;
mod likelihood;
mod loss;
mod noise_level;
mod presets;
mod sampling;
mod tiles;
pub mod train;
pub mod unet;
mod upsampler;
mod upsampler_config;

pub use caption::{CaptionEncoder, CaptionEncoderConfig};
pub use conditioning::{Condition, Conditioning};
pub use config::DecoderConfig;
pub use decoder::{DecoderNetwork, UnclipDecoder};
pub use likelihood::BitsPerDimension;
pub use loss::{DiffusionLoss, Noised};
pub use noise_level::NoiseLevel;
pub use upsampler::{DiffusionUpsampler, UpsamplerNetworks};
pub use upsampler_config::{Enlargement, UpsamplerConfig};
