//! `cargo xtask peer`: the benchmarks of this workspace and the same ones in PyTorch, alternately, and their ratios.

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
    what: What,
}

#[derive(Debug, Clone, Subcommand)]
enum What {
    /// Single operations: convolutions, norms, attention, …
    Operations(operations::Operations),
    /// A training step of every part
    Training(training::Training),
    /// A generation by an unCLIP checkpoint, step by step
    Pipeline(pipeline::Pipeline),
}

/// What all comparisons are told.
#[derive(Debug, Clone, Args)]
struct Common {
    /// A Python with PyTorch, diffusers and transformers, see benches/peer/README.md
    #[arg(long, value_name = "FILE", default_value = "python3")]
    python: PathBuf,
    /// How often both sides are measured in turn; the medians are compared
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// Threads of both sides; all of the machine's if not given
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
    let common = match &peer.what {
        What::Operations(what) => &what.common,
        What::Training(what) => &what.common,
        What::Pipeline(what) => &what.common,
    };
    common.check()?;
    let mut report = Report::new(common);
    match &peer.what {
        What::Operations(what) => operations::compare(what, &mut report)?,
        What::Training(what) => training::compare(what, &mut report)?,
        What::Pipeline(what) => pipeline::compare(what, &mut report)?,
    }
    println!("\n{report}");
    report.save(common.json.as_deref())
}
