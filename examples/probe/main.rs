//! Measures and shows what the manipulations and the decoder can do, and where they fail.
//!
//! ```text
//! cargo run --release --example probe -- inversion --json out/inversion.json
//! cargo run --release --example probe -- text-diff --json out/text_diff.json
//! cargo run --release --example probe -- failures --suite binding
//! ```
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

#[path = "../shared/edit.rs"]
mod edit;
mod failures;
mod inversion;
mod text_diff;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Probe a pipeline.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    probe: Probe,
}

#[derive(Debug, Subcommand)]
enum Probe {
    /// How well images reconstruct from their embedding and noise, by steps and evaluations
    Inversion(inversion::Args),
    /// Whether text diffs bring images closer to the new caption and keep the rest
    TextDiff(text_diff::Args),
    /// Captions that such models are known to fail on
    Failures(failures::Args),
}

fn main() -> Result<()> {
    match Cli::parse().probe {
        Probe::Inversion(args) => inversion::run(&args),
        Probe::TextDiff(args) => text_diff::run(&args),
        Probe::Failures(args) => failures::run(&args),
    }
}
