//! Decoder and upsamplers in the layout of diffusers' unCLIP pipelines: folders, settings and tensor names.
//!
//! | folder | class | is our |
//! |---|---|---|
//! | `decoder` | `UNet2DConditionModel` | [`DecoderNetwork::unet`](crate::DecoderNetwork) |
//! | `text_proj` | `UnCLIPTextProjModel` | [`DecoderNetwork::conditioning`](crate::DecoderNetwork) |
//! | `super_res_first`, `super_res_last` | `UNet2DModel` | [`UpsamplerNetworks`](crate::UpsamplerNetworks) |
//! | `decoder_scheduler`, `super_res_scheduler` | `UnCLIPScheduler` | [`DiffusionConfig`](crate::DiffusionConfig) |

mod decoder;
mod names;
mod unet;
mod upsampler;

pub(crate) use decoder::{DecoderFiles, decoder_faults, decoder_files, load_decoder, read_decoder, save_decoder};
pub(crate) use upsampler::{
    UpsamplerFiles, load_upsampler, read_upsampler, save_upsampler, upsampler_faults, upsampler_files,
};

use dalle2_core::ConfigError;
use dalle2_core::diffusers::{Process, UnclipScheduler};
use dalle2_core::diffusion::{BetaSchedule, Clip, Sampler};

use crate::DiffusionConfig;

/// A stage's process as its scheduler describes it; steps and guidance are the reference's defaults where it has none.
fn diffusion_config(scheduler: &UnclipScheduler, steps: usize, guidance: f64) -> DiffusionConfig {
    DiffusionConfig {
        train_steps: scheduler.train_steps,
        schedule: BetaSchedule::Cosine,
        prediction: scheduler.prediction,
        sampler: Sampler::Ddpm,
        clip: Some(scheduler.clip),
        rounding: Some(UnclipScheduler::ROUNDING),
        ..DiffusionConfig::cosine(
            scheduler.variance,
            scheduler.steps.unwrap_or(steps).min(scheduler.train_steps),
            scheduler.guidance.unwrap_or(guidance),
        )
    }
}

/// The scheduler of a process that has no faults; steps and guidance are left out where they are the reference's.
fn scheduler(diffusion: &DiffusionConfig, steps: usize, guidance: f64) -> UnclipScheduler {
    UnclipScheduler {
        train_steps: diffusion.train_steps,
        variance: diffusion.variance,
        prediction: diffusion.prediction,
        clip: diffusion.clip.unwrap_or(Clip::Range(1.0)),
        steps: (diffusion.sampling_steps != steps.min(diffusion.train_steps)).then_some(diffusion.sampling_steps),
        guidance: (diffusion.guidance != guidance).then_some(diffusion.guidance),
    }
}

/// What keeps a process from being that of a diffusers scheduler.
fn process_faults(diffusion: &DiffusionConfig) -> Vec<String> {
    let mut faults = UnclipScheduler::faults(&Process {
        schedule: diffusion.schedule,
        prediction: diffusion.prediction,
        variance: diffusion.variance,
        sampler: diffusion.sampler,
        clip: diffusion.clip.unwrap_or(Clip::Range(1.0)),
    });
    for (field, set) in
        [("guidance_interval", diffusion.guidance_interval.is_some()), ("spacing", diffusion.spacing.is_some())]
    {
        if set {
            let expected = "UnCLIPScheduler guides at every timestep and spaces them evenly: leave it out";
            faults.push(ConfigError::new(field, "set", expected).to_string());
        }
    }
    faults
}
