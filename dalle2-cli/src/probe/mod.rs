//! Measures manipulations and conditioning of a pipeline, with contact sheets of successes and failures.

mod conditionings;
mod failures;
mod inpainting;
mod inversion;
mod labels;
mod pca;
mod renderings;
mod text_diff;
mod typographic;

use anyhow::Result;
use clap::{Args, Subcommand};

const EXAMPLES: &str = "Examples:
  dalle2 probe inversion --json out/inversion.json
  dalle2 probe text-diff --json out/text_diff.json
  dalle2 probe inpainting --json out/inpainting.json
  dalle2 probe pca --save out/pca.safetensors
  dalle2 probe typographic
  dalle2 probe conditionings
  dalle2 probe failures --suite binding";

/// Measure manipulations and conditioning of a pipeline
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    probe: Probe,
}

#[derive(Debug, Subcommand)]
enum Probe {
    /// Reconstruction of images from their embedding and noise, by steps and evaluations
    Inversion(inversion::Args),
    /// Text diffs: similarity to the new caption and preservation of the rest
    TextDiff(text_diff::Args),
    /// Inpainting: agreement with the caption and preservation of known pixels
    Inpainting(inpainting::Args),
    /// Images from the leading principal components of an embedding
    Pca(pca::Args),
    /// Typographic attacks: CLIP probabilities of images with a written word, and images generated from them
    Typographic(typographic::Args),
    /// One decoder conditioned on the caption alone, on the text embedding and on the prior
    Conditionings(conditionings::Args),
    /// Captions with known failures of unCLIP models
    Failures(failures::Args),
}

pub fn run(cli: &Cli) -> Result<()> {
    match &cli.probe {
        Probe::Inversion(args) => inversion::run(args),
        Probe::TextDiff(args) => text_diff::run(args),
        Probe::Inpainting(args) => inpainting::run(args),
        Probe::Pca(args) => pca::run(args),
        Probe::Typographic(args) => typographic::run(args),
        Probe::Conditionings(args) => conditionings::run(args),
        Probe::Failures(args) => failures::run(args),
    }
}
