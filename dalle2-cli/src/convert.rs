//! Writes a pipeline in the layout of diffusers.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use dalle2::{Device, LoadOptions, Pipeline, Residency};

use crate::args::FloatName;

const EXAMPLES: &str = "Examples:
  dalle2 convert runs/portable/export out/portable
  dalle2 convert out/portable out/portable-f16 --precision f16

A pipeline that diffusers cannot express is refused, with the reasons.";

/// Write a pipeline in the layout of diffusers, or change the element type of its weights
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Cli {
    /// Pipeline directory to read
    from: PathBuf,
    /// Directory to write
    to: PathBuf,
    /// Element type of the written weights
    #[arg(long, value_enum, default_value = "f32")]
    precision: FloatName,
}

pub fn run(cli: &Cli) -> Result<()> {
    // Copying needs one part in memory at a time.
    let options = LoadOptions::new(&Device::default()).residency(Residency::OneStage);
    Pipeline::from_pretrained_with(&cli.from, &options)?.save_diffusers(&cli.to, cli.precision.into())?;
    println!("wrote {}", cli.to.display());
    Ok(())
}
