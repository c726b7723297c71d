//! The super-resolution stage's three folders.

use std::path::Path;

use dalle2_core::diffusers::{IndexEntry, UnclipScheduler, load_weights, save_weights};
use dalle2_core::store::{CONFIG_FILE, write_json};
use dalle2_core::{ConfigError, Error, FloatType, Reading, Result};
use serde_json::{Map, Value};

use super::names::unet_tensor_name;
use super::unet::{self, Class};
use crate::{Enlargement, UpsamplerConfig, UpsamplerNetworks};

const FIRST: &str = "super_res_first";
const LAST: &str = "super_res_last";
const SCHEDULER: &str = "super_res_scheduler";
/// Steps of the reference pipeline when a call names none; it has no guidance here.
const STEPS: usize = 7;
const GUIDANCE: f64 = 1.0;

/// The JSON files of a super-resolution stage.
#[derive(Debug, Clone)]
pub(crate) struct UpsamplerFiles {
    first: Map<String, Value>,
    last: Map<String, Value>,
    scheduler: Map<String, Value>,
}

/// Reads the settings.
pub(crate) fn read_upsampler(root: &Path) -> Result<(UpsamplerConfig, UpsamplerFiles)> {
    let input_size = unet::read(&root.join("decoder"), Class::Conditional)?.sample_size;
    let first = unet::read(&root.join(FIRST), Class::Plain)?;
    let last = unet::read(&root.join(LAST), Class::Plain)?;
    let (scheduler, scheduler_json) = UnclipScheduler::read(root.join(SCHEDULER))?;
    let path = root.join(FIRST).join(CONFIG_FILE);
    let size = first.sample_size;
    if size % input_size != 0 {
        let message = format!("`sample_size` is {size}, expected a multiple of the decoder's {input_size}");
        return Err(Error::format(&path, message));
    }
    if last.sample_size != size {
        let message = format!("`sample_size` is {}, expected {size} as in `{FIRST}`", last.sample_size);
        return Err(Error::format(root.join(LAST).join(CONFIG_FILE), message));
    }
    let config = UpsamplerConfig {
        input_size,
        factor: size / input_size,
        noise_level: None,
        inpainting: false,
        unet: first.config,
        last_step: Some(last.config),
        enlargement: Some(Enlargement::Overshooting),
        residual: false,
        diffusion: scheduler.diffusion_config(STEPS, GUIDANCE),
    };
    config.validate().map_err(|e| Error::format(&path, e.to_string()))?;
    Ok((config, UpsamplerFiles { first: first.json, last: last.json, scheduler: scheduler_json }))
}

/// Reads the weights into networks of the settings.
pub(crate) fn load_upsampler(reading: Reading, networks: UpsamplerNetworks, root: &Path) -> Result<UpsamplerNetworks> {
    let UpsamplerNetworks { first, last } = networks;
    let first = load_weights(reading, first, &root.join(FIRST), &unet_tensor_name)?;
    let last = last.map(|last| load_weights(reading, last, &root.join(LAST), &unet_tensor_name)).transpose()?;
    Ok(UpsamplerNetworks { first, last })
}

/// What keeps an upsampler from being one of diffusers.
pub(crate) fn upsampler_faults(config: &UpsamplerConfig) -> Vec<String> {
    let networks = config.networks().flat_map(|(field, unet)| unet::faults(unet, Class::Plain, field));
    let enlargement = config.enlargement.unwrap_or_default();
    let enlargement = (enlargement != Enlargement::Overshooting).then(|| {
        let expected = "diffusers does not clamp the enlarged image: use Overshooting";
        ConfigError::new("enlargement", format!("{enlargement:?}"), expected).to_string()
    });
    let inputs = [("noise_level", config.noise_level.is_some()), ("inpainting", config.inpainting)];
    let inputs = inputs.into_iter().filter(|(_, set)| *set).map(|(field, _)| {
        let expected = "super_res_first reads the noisy image and the enlarged small one only: leave it out";
        ConfigError::new(field, "set", expected).to_string()
    });
    let residual = config.residual.then(|| {
        ConfigError::new("residual", "true", "the networks of diffusers predict whole images: leave it out").to_string()
    });
    let faults =
        networks.chain(enlargement).chain(inputs).chain(residual).chain(UnclipScheduler::faults(&config.diffusion));
    faults.map(|fault| format!("upsampler: {fault}")).collect()
}

/// The JSON files for settings without faults. Where one network takes all steps, it is written as both.
pub(crate) fn upsampler_files(config: &UpsamplerConfig) -> UpsamplerFiles {
    let json = |unet| unet::to_json(unet, config.output_size(), Class::Plain);
    UpsamplerFiles {
        first: json(&config.unet),
        last: json(config.last_step.as_ref().unwrap_or(&config.unet)),
        scheduler: UnclipScheduler::new(&config.diffusion, STEPS, GUIDANCE).to_json(),
    }
}

/// Writes the folders.
pub(crate) fn save_upsampler(
    networks: &UpsamplerNetworks,
    files: &UpsamplerFiles,
    root: &Path,
    float_type: FloatType,
) -> Result<Vec<IndexEntry>> {
    let last = networks.last.as_ref().unwrap_or(&networks.first);
    for (folder, network, json) in [(FIRST, &networks.first, &files.first), (LAST, last, &files.last)] {
        save_weights(network, &root.join(folder), float_type, &unet_tensor_name)?;
        write_json(root.join(folder).join(CONFIG_FILE), json)?;
    }
    UnclipScheduler::write(&root.join(SCHEDULER), &files.scheduler)?;
    let [library, class] = UnclipScheduler::ENTRY;
    Ok(vec![
        IndexEntry::new(FIRST, "diffusers", Class::Plain.name()),
        IndexEntry::new(LAST, "diffusers", Class::Plain.name()),
        IndexEntry::new(SCHEDULER, library, class),
    ])
}
