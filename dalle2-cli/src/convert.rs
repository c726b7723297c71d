//! Writes a pipeline in the layout of diffusers, or says what keeps it from being written so.
//!
//! ```text
//! cargo run --release --example convert -- runs/portable/export out/portable
//! ```
//!
//! A pipeline that is in that layout already is written anew, for example in another precision.
use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use dalle2::{Device, FloatType, LoadOptions, Pipeline, Residency};

/// Write a pipeline in the layout of diffusers.
#[derive(Debug, Parser)]
pub struct Cli {
    /// Pipeline directory to read
    from: PathBuf,
    /// Directory to write
    to: PathBuf,
    /// Element type of the weights that are written
    #[arg(long, value_enum, default_value = "f32")]
    precision: Type,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Type {
    F32,
    F16,
    Bf16,
}

pub fn run(cli: &Cli) -> Result<()> {
    let precision = match cli.precision {
        Type::F32 => FloatType::F32,
        Type::F16 => FloatType::F16,
        Type::Bf16 => FloatType::Bf16,
    };
    // One part at a time in memory is enough for copying.
    let options = LoadOptions::new(&Device::default()).residency(Residency::OneStage);
    Pipeline::from_pretrained_with(&cli.from, &options)?.save_diffusers(&cli.to, precision)?;
    println!("wrote {}", cli.to.display());
    Ok(())
}
