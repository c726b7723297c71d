//! Measures a pipeline, its decoder or its upsamplers on the emoji.

mod decoder;
mod pipeline;
mod upsamplers;

use anyhow::Result;
use clap::{Args, Subcommand};

const EXAMPLES: &str = "Examples:
  dalle2 evaluate --num-images 200 --json out/evaluation.json
  dalle2 evaluate --model runs/emoji/export --upsample
  dalle2 evaluate decoder samplers
  dalle2 evaluate upsamplers";

/// Measure a pipeline on the emoji: accuracy and CLIP similarity
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    pipeline: pipeline::PipelineArgs,
}

#[derive(Debug, Subcommand)]
enum Part {
    Decoder(decoder::DecoderArgs),
    Upsamplers(upsamplers::UpsamplerArgs),
}

pub fn run(cli: &Cli) -> Result<()> {
    match &cli.part {
        None => pipeline::run(&cli.pipeline),
        Some(Part::Decoder(args)) => decoder::run(args),
        Some(Part::Upsamplers(args)) => upsamplers::run(args),
    }
}
