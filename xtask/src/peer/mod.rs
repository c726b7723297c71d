//! `cargo xtask peer`: runs the benchmarks of this workspace and of PyTorch alternately and prints their ratios.

mod machine;
mod operations;
mod pipeline;
mod report;
mod sides;
mod training;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

use report::Report;

#[derive(Debug, Clone, Args)]
pub struct Peer {
    #[command(subcommand)]
    comparison: Comparison,
}

#[derive(Debug, Clone, Subcommand)]
enum Comparison {
    /// Single operations: convolutions, norms, attention, …
    Operations(operations::Operations),
    /// A training step of each part
    Training(training::Training),
    /// A generation by an unCLIP checkpoint, step by step
    Pipeline(pipeline::Pipeline),
}

/// Options of every comparison.
#[derive(Debug, Clone, Args)]
struct Common {
    /// Python with PyTorch, diffusers and transformers, see benches/peer/README.md
    #[arg(long, value_name = "FILE", default_value = "python3")]
    python: PathBuf,
    /// Number of alternating measurements of both sides; the medians are compared
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// Threads of both sides [default: all]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Writes every value as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Common {
    fn check(&self) -> Result<()> {
        if self.rounds == 0 {
            bail!("--rounds 0: at least one is needed");
        }
        if self.threads == Some(0) {
            bail!("--threads 0: at least one is needed");
        }
        Ok(())
    }

    fn threads(&self) -> usize {
        self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }
}

pub fn run_all(peer: &Peer) -> Result<()> {
    let common = match &peer.comparison {
        Comparison::Operations(options) => &options.common,
        Comparison::Training(options) => &options.common,
        Comparison::Pipeline(options) => &options.common,
    };
    common.check()?;
    let mut report = Report::new(common);
    match &peer.comparison {
        Comparison::Operations(options) => operations::compare(options, &mut report)?,
        Comparison::Training(options) => training::compare(options, &mut report)?,
        Comparison::Pipeline(options) => pipeline::compare(options, &mut report)?,
    }
    println!("\n{report}");
    report.save(common.json.as_deref())
}
