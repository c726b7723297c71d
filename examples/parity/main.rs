//! Compares a checkpoint in the layout of diffusers with what the reference implementation computed with it.
//!
//! ```text
//! cargo run --release --example parity -- tests/fixtures/tiny-unclip
//! ```
//!
//! The directory holds `pipeline/`, `image_variation/` (the parts that differ), `fixtures/*.safetensors` and `manifest.json`.
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

mod compare;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use compare::Row;
use serde::Serialize;

/// Compare every component, and both recorded generations, with the reference implementation.
#[derive(Debug, Parser)]
struct Cli {
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

#[derive(Serialize)]
struct Report<'a> {
    components: &'a [Row],
}

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    let rows = compare::compare(&cli.dir, &dalle2::device(&cli.device)?, cli.tolerance)?;
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or_default();
    println!("{:width$}  {:>10}  {:>10}  pass", "component", "absolute", "relative");
    for Row { name, max_abs, max_rel, pass } in &rows {
        println!("{name:width$}  {max_abs:>10.2e}  {max_rel:>10.2e}  {}", if *pass { "yes" } else { "NO" });
    }
    let failed = rows.iter().filter(|row| !row.pass).count();
    println!("{} of {} rows are within {:e}", rows.len() - failed, rows.len(), cli.tolerance);
    if let Some(path) = &cli.json {
        let json = serde_json::to_string_pretty(&Report { components: &rows })?;
        std::fs::write(path, json + "\n").with_context(|| path.display().to_string())?;
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
