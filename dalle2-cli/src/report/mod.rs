//! Writes one HTML page about training runs: curves, samples over time, what their configurations differ in, throughput
//! and memory. The page needs no other file and no network.
//!
//! ```text
//! cargo run --release --example report -- runs/tiny
//! cargo run --release --example report -- runs/a/decoder runs/b/decoder --out out/a-and-b.html
//! ```

mod curves;
mod page;
mod runs;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;

/// Write a page about training runs.
#[derive(Debug, Parser)]
pub struct Cli {
    /// Folders of runs, or folders with runs in them
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// The page
    #[arg(long, value_name = "FILE", default_value = "out/report.html")]
    out: PathBuf,
    /// Sample pictures of each run, spread over its length
    #[arg(long, default_value_t = 6)]
    samples: usize,
}

pub fn run(cli: &Cli) -> Result<()> {
    let groups = runs::open(&cli.runs)?;
    let count: usize = groups.iter().map(|group| group.runs.len()).sum();
    page::write(&cli.out, &groups, cli.samples)?;
    println!("{count} runs in {}", cli.out.display());
    Ok(())
}
