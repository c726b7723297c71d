//! Options that several subcommands share, so that one name means the same everywhere.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use dalle2::base::image::Provenance;
use dalle2::base::{Tiling, UpsamplerOptions};
use dalle2::{Device, FloatType, GenerateRequest, LoadOptions, Pipeline, Residency};

#[cfg(feature = "hub")]
use crate::progress::Downloads;

/// The device that computes.
#[derive(Debug, Clone, Args)]
pub struct DeviceArgs {
    /// Device: default, flex, cuda:0, wgpu, …
    #[arg(long, default_value = "default", help_heading = "Model")]
    pub device: String,
}

impl DeviceArgs {
    /// Opens the device.
    pub fn open(&self) -> Result<Device> {
        Ok(dalle2::device(&self.device)?)
    }
}

/// The pipeline, and how it is loaded.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// Pipeline directory
    #[arg(long, value_name = "DIR", default_value = "models/emoji")]
    pub model: PathBuf,
    /// Downloads the pipeline OWNER/NAME from the Hugging Face hub, or loads it from the cache
    #[cfg(feature = "hub")]
    #[arg(long, value_name = "OWNER/NAME", conflicts_with = "model")]
    pub hub: Option<String>,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Element type of the diffusion networks
    #[arg(long, value_enum, default_value = "f32")]
    pub compute_type: FloatName,
    /// Stages in memory at a time; `one-stage` is slower and needs memory for the largest stage only
    #[arg(long, value_enum, default_value = "resident")]
    pub residency: ResidencyName,
}

/// Element types by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FloatName {
    F32,
    F16,
    Bf16,
}

impl From<FloatName> for FloatType {
    fn from(name: FloatName) -> Self {
        match name {
            FloatName::F32 => Self::F32,
            FloatName::F16 => Self::F16,
            FloatName::Bf16 => Self::Bf16,
        }
    }
}

/// Residencies by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ResidencyName {
    /// All stages stay loaded
    Resident,
    /// Each stage is loaded when it runs
    OneStage,
}

impl From<ResidencyName> for Residency {
    fn from(name: ResidencyName) -> Self {
        match name {
            ResidencyName::Resident => Self::Resident,
            ResidencyName::OneStage => Self::OneStage,
        }
    }
}

impl ModelArgs {
    /// The load options of these arguments.
    pub fn load_options(&self) -> Result<LoadOptions> {
        Ok(LoadOptions::new(&self.device.open()?)
            .residency(self.residency.into())
            .compute_type(self.compute_type.into()))
    }

    /// Loads the pipeline.
    pub fn load(&self) -> Result<Pipeline> {
        let options = self.load_options()?;
        #[cfg(feature = "hub")]
        if let Some(repo) = &self.hub {
            let downloads = Downloads::new();
            return Ok(Pipeline::from_hub_with(repo, &dalle2::Hub::new(), &options, |download| {
                downloads.show(download.file, download.done, download.total);
            })?);
        }
        Ok(Pipeline::from_pretrained_with(&self.model, &options)?)
    }

    /// The name of the model for people and for image metadata.
    pub fn name(&self) -> String {
        #[cfg(feature = "hub")]
        if let Some(repo) = &self.hub {
            return repo.clone();
        }
        self.model.display().to_string()
    }
}

/// How images are sampled.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Seed of the first image, random and printed if not given; image i has seed S + i
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
    /// Sampling steps of the prior
    #[arg(long, value_name = "N")]
    pub prior_steps: Option<usize>,
    /// Sampling steps of the decoder
    #[arg(long, value_name = "N", alias = "steps")]
    pub decoder_steps: Option<usize>,
    /// Sampling steps of every upsampler
    #[arg(long, value_name = "N")]
    pub upsampler_steps: Option<usize>,
    /// Guidance scale of the decoder; 1 is no guidance
    #[arg(long, value_name = "G")]
    pub guidance: Option<f64>,
    /// Side of the tiles in which upsamplers run, with a quarter of overlap: slower, and the tile bounds the memory
    #[arg(long, value_name = "PIXELS")]
    pub tile: Option<usize>,
}

impl SamplingArgs {
    /// The seed of these arguments, or a random one.
    pub fn seed(&self) -> u64 {
        self.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()))
    }

    /// Sets these arguments in a request, except for the seed.
    pub fn apply(&self, mut request: GenerateRequest) -> GenerateRequest {
        if let Some(steps) = self.prior_steps {
            request = request.prior_steps(steps);
        }
        if let Some(steps) = self.decoder_steps {
            request = request.decoder_steps(steps);
        }
        if let Some(guidance) = self.guidance {
            request = request.guidance(guidance);
        }
        let tiling = self.tile.map(|size| Tiling { size, overlap: size / 4 });
        request.upsampler_options(UpsamplerOptions { steps: self.upsampler_steps, tiling, ..Default::default() })
    }
}

/// Metadata of PNG files.
#[derive(Debug, Clone, Args)]
pub struct MetadataArgs {
    /// Writes no caption, seed, model and version into PNG files
    #[arg(long, help_heading = "Output")]
    pub no_metadata: bool,
}

impl MetadataArgs {
    /// The metadata of an image, unless they are switched off.
    pub fn provenance(&self, caption: &str, seed: u64, model: String) -> Option<Provenance> {
        (!self.no_metadata).then(|| Provenance {
            caption: caption.to_owned(),
            seed: Some(seed),
            model,
            software: concat!("dalle2 ", env!("CARGO_PKG_VERSION")).to_owned(),
        })
    }
}

/// A JSON file beside the printed table.
#[derive(Debug, Clone, Args)]
pub struct JsonArgs {
    /// Also writes the results as JSON
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub json: Option<PathBuf>,
}

impl JsonArgs {
    /// Writes the results if a file was given.
    pub fn write(&self, results: &impl serde::Serialize) -> Result<()> {
        if let Some(file) = &self.json {
            dalle2::base::store::write_json(file, results)?;
            println!("{}", file.display());
        }
        Ok(())
    }
}
