//! Writes webdataset shards of coloured shapes with captions, one in a hundred of them broken: something to try the
//! readers, the trainers and `inspect_dataset` with.
//!
//! ```text
//! cargo run --release --example make_webdataset -- --out data/shapes
//! cargo run --release --example inspect_dataset -- "data/shapes/*.tar"
//! ```
use std::path::PathBuf;

use crate::webdataset::{Damage, Recipe, write_webdataset};
use anyhow::{Result, ensure};
use clap::Parser;

/// Generate a webdataset.
#[derive(Debug, Parser)]
pub struct Cli {
    /// Directory of the shards
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Samples, broken ones included
    #[arg(long, default_value_t = 10_000)]
    samples: usize,
    /// Samples in a shard
    #[arg(long, default_value_t = 1000)]
    shard_size: usize,
    /// Side of the images in pixels
    #[arg(long, default_value_t = 64)]
    side: u32,
    /// One sample in so many is broken; 0 for none
    #[arg(long, default_value_t = 100)]
    broken_every: usize,
    /// Compresses the shards
    #[arg(long)]
    gz: bool,
    /// Seed of pictures and captions
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

pub fn run(cli: &Cli) -> Result<()> {
    ensure!(cli.shard_size > 0, "--shard-size 0: at least one sample");
    ensure!((8..=4096).contains(&cli.side), "--side {}: between 8 and 4096", cli.side);
    let recipe = Recipe {
        samples: cli.samples,
        shard_size: cli.shard_size,
        side: cli.side,
        broken_every: cli.broken_every,
        compressed: cli.gz,
        seed: cli.seed,
    };
    let broken = write_webdataset(&cli.out, &recipe)?;
    println!("{} samples in {}, {} of them broken", cli.samples, cli.out.display(), broken.len());
    for kind in Damage::ALL {
        println!("  {kind:?}: {}", broken.iter().filter(|(_, damage)| *damage == kind).count());
    }
    Ok(())
}
