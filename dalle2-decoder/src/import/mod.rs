//! Decoder and upsamplers in the layout of diffusers' unCLIP pipelines: folders, settings and tensor names.
//!
//! | folder | class | is our |
//! |---|---|---|
//! | `decoder` | `UNet2DConditionModel` | [`DecoderNetwork::unet`](crate::DecoderNetwork) |
//! | `text_proj` | `UnCLIPTextProjModel` | [`DecoderNetwork::conditioning`](crate::DecoderNetwork) |
//! | `super_res_first`, `super_res_last` | `UNet2DModel` | [`UpsamplerNetworks`](crate::UpsamplerNetworks) |
//! | `decoder_scheduler`, `super_res_scheduler` | `UnCLIPScheduler` | [`DiffusionConfig`](dalle2_core::diffusion::DiffusionConfig) |

mod decoder;
mod names;
mod unet;
mod upsampler;

pub(crate) use decoder::{DecoderFiles, decoder_faults, decoder_files, load_decoder, read_decoder, save_decoder};
pub(crate) use upsampler::{
    UpsamplerFiles, load_upsampler, read_upsampler, save_upsampler, upsampler_faults, upsampler_files,
};
