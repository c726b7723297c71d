//! Writes an unCLIP checkpoint with random weights in the layout of diffusers: to try the sizes of the published one
//! without a download.
//!
//! ```text
//! cargo run --release --example make_random_checkpoint -- --preset karlo --out out/karlo-random
//! ```
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

mod layout;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use layout::Sizes;

/// Write an unCLIP checkpoint with random weights.
#[derive(Debug, Parser)]
struct Cli {
    /// Sizes of the networks
    #[arg(long, value_enum)]
    preset: Preset,
    /// Directory to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Seed of the weights
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Preset {
    /// Those of Karlo v1 alpha: 3.3 G parameters, 6.6 GB on disk
    Karlo,
    /// A few megabytes
    Tiny,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let sizes = match cli.preset {
        Preset::Karlo => Sizes::karlo(),
        Preset::Tiny => Sizes::tiny(),
    };
    let start = Instant::now();
    let mut total = 0;
    layout::write(&cli.out, &sizes, cli.seed, |folder, parameters| {
        total += parameters;
        println!("{folder:16} {:8.1} M parameters", parameters as f64 / 1e6);
    })?;
    println!("{:16} {:8.1} M parameters, {:.0} s", "in all", total as f64 / 1e6, start.elapsed().as_secs_f64());
    println!("{}", cli.out.display());
    Ok(())
}
