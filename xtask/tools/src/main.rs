//! The program behind `cargo xtask parity` and `cargo xtask random-checkpoint`.
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use dalle2_tools::parity::{Row, compare};
use dalle2_tools::random_checkpoint::{Sizes, write};
use serde::Serialize;

/// Commands of xtask that compute with the library.
#[derive(Debug, Parser)]
#[command(name = "xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Parity(Parity),
    RandomCheckpoint(RandomCheckpoint),
}

/// Compares every component and two recorded generations of a checkpoint with the reference implementation.
///
/// The directory contains `pipeline/`, `image_variation/` (the components that differ), `fixtures/*.safetensors` and
/// `manifest.json`, as `tests/reference/make_unclip.py` writes them.
#[derive(Debug, Args)]
struct Parity {
    /// Directory of the checkpoint and its recordings
    dir: PathBuf,
    /// Writes the table as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Largest absolute error that passes
    #[arg(long, value_name = "E", default_value_t = 1e-4)]
    tolerance: f64,
    /// Device: default, flex, cuda:0, wgpu, …
    #[arg(long, default_value = "default")]
    device: String,
}

/// Writes an unCLIP checkpoint with random weights in the layout of diffusers.
#[derive(Debug, Args)]
struct RandomCheckpoint {
    /// Sizes of the networks
    #[arg(long, value_enum)]
    preset: Preset,
    /// Output directory
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Seed of the weights
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Preset {
    /// The sizes of Karlo v1 alpha: 3.3 G parameters, 6.6 GB on disk
    Karlo,
    /// A few megabytes
    Tiny,
}

/// The file that `parity --json` writes.
#[derive(Serialize)]
struct Report<'a> {
    components: &'a [Row],
}

fn main() -> Result<ExitCode> {
    match Arguments::parse().command {
        Command::Parity(arguments) => parity(&arguments),
        Command::RandomCheckpoint(arguments) => random_checkpoint(&arguments),
    }
}

fn parity(arguments: &Parity) -> Result<ExitCode> {
    let rows = compare(&arguments.dir, &dalle2::device(&arguments.device)?, arguments.tolerance)?;
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or_default();
    println!("{:width$}  {:>10}  {:>10}  pass", "component", "absolute", "relative");
    for Row { name, max_abs, max_rel, pass } in &rows {
        println!("{name:width$}  {max_abs:>10.2e}  {max_rel:>10.2e}  {}", if *pass { "yes" } else { "NO" });
    }
    let failed = rows.iter().filter(|row| !row.pass).count();
    println!("{} of {} rows are within {:e}", rows.len() - failed, rows.len(), arguments.tolerance);
    if let Some(path) = &arguments.json {
        let json = serde_json::to_string_pretty(&Report { components: &rows })?;
        std::fs::write(path, json + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn random_checkpoint(arguments: &RandomCheckpoint) -> Result<ExitCode> {
    let sizes = match arguments.preset {
        Preset::Karlo => Sizes::karlo(),
        Preset::Tiny => Sizes::tiny(),
    };
    let start = Instant::now();
    let mut total = 0;
    write(&arguments.out, &sizes, arguments.seed, |folder, parameters| {
        total += parameters;
        println!("{folder:16} {:8.1} M parameters", parameters as f64 / 1e6);
    })?;
    println!("{:16} {:8.1} M parameters, {:.0} s", "total", total as f64 / 1e6, start.elapsed().as_secs_f64());
    println!("{}", arguments.out.display());
    Ok(ExitCode::SUCCESS)
}
