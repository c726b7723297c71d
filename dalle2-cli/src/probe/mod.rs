//! Measures and shows what the manipulations and the decoder can do, and where they fail.
//!
//! ```text
//! cargo run --release --example probe -- inversion --json out/inversion.json
//! cargo run --release --example probe -- text-diff --json out/text_diff.json
//! cargo run --release --example probe -- inpainting --json out/inpainting.json
//! cargo run --release --example probe -- pca --save out/pca.safetensors
//! cargo run --release --example probe -- typographic
//! cargo run --release --example probe -- conditionings
//! cargo run --release --example probe -- failures --suite binding
//! ```

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
use clap::{Parser, Subcommand};

/// Probe a pipeline.
#[derive(Debug, Parser)]
pub struct Cli {
    #[command(subcommand)]
    probe: Probe,
}

#[derive(Debug, Subcommand)]
enum Probe {
    /// How well images reconstruct from their embedding and noise, by steps and evaluations
    Inversion(inversion::Args),
    /// Whether text diffs bring images closer to the new caption and keep the rest
    TextDiff(text_diff::Args),
    /// Whether what is drawn into a hole shows what the caption says, and the rest stays as it was
    Inpainting(inpainting::Args),
    /// What the leading principal components of an embedding say
    Pca(pca::Args),
    /// What CLIP reads on a picture with a written word, and what the decoder draws from it
    Typographic(typographic::Args),
    /// What one decoder draws from the caption alone, from the text embedding and from the prior's
    Conditionings(conditionings::Args),
    /// Captions that such models are known to fail on
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
