//! Measures a pipeline, its decoder or its upsamplers on the emoji.

mod decoder;
mod pipeline;
mod upsamplers;

use anyhow::Result;
use clap::{Args, Subcommand};

/// Measure a pipeline: how often the generated image is the right emoji, and CLIP similarity
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    pipeline: pipeline::Cli,
}

#[derive(Debug, Subcommand)]
enum Part {
    Decoder(decoder::Cli),
    Upsamplers(upsamplers::Cli),
}

pub fn run(cli: &Cli) -> Result<()> {
    match &cli.part {
        None => pipeline::run(&cli.pipeline),
        Some(Part::Decoder(args)) => decoder::run(args),
        Some(Part::Upsamplers(args)) => upsamplers::run(args),
    }
}
