//! A self-contained HTML page about training runs: curves, samples over time, differences of configuration, throughput
//! and memory.

mod curves;
mod page;
mod runs;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

const EXAMPLES: &str = "Examples:
  dalle2 report runs/tiny
  dalle2 report runs/a/decoder runs/b/decoder --out out/a-and-b.html";

/// Write an HTML page about training runs
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Cli {
    /// Run directories, or directories that contain runs
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// HTML file
    #[arg(long, value_name = "FILE", default_value = "out/report.html")]
    out: PathBuf,
    /// Sample images per run, spread over its length
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
