//! Writes webdataset shards of coloured shapes with captions, some of them broken, to test readers and trainers.

use std::path::PathBuf;

use crate::outcome::check_usage;
use crate::webdataset::{Damage, Recipe, write_webdataset};
use anyhow::Result;
use clap::Args;

const EXAMPLES: &str = "Examples:
  dalle2 make-webdataset --out data/shapes
  dalle2 inspect \"data/shapes/*.tar\"";

/// Write a webdataset of coloured shapes, some of them broken, for tests
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Cli {
    /// Directory of the shards
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Number of samples, including broken ones
    #[arg(long, default_value_t = 10_000, alias = "samples")]
    num_images: usize,
    /// Samples per shard
    #[arg(long, default_value_t = 1000)]
    shard_size: usize,
    /// Side of the images in pixels
    #[arg(long, default_value_t = 64)]
    side: u32,
    /// One in N samples is broken; 0 for none
    #[arg(long, default_value_t = 100)]
    broken_every: usize,
    /// Compresses the shards
    #[arg(long)]
    gz: bool,
    /// Seed of images and captions
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

pub fn run(cli: &Cli) -> Result<()> {
    check_usage!(cli.shard_size > 0, "--shard-size 0: at least 1");
    check_usage!((8..=4096).contains(&cli.side), "--side {}: between 8 and 4096", cli.side);
    let recipe = Recipe {
        samples: cli.num_images,
        shard_size: cli.shard_size,
        side: cli.side,
        broken_every: cli.broken_every,
        compressed: cli.gz,
        seed: cli.seed,
    };
    let broken = write_webdataset(&cli.out, &recipe)?;
    println!("{} samples in {}, {} of them broken", cli.num_images, cli.out.display(), broken.len());
    for kind in Damage::ALL {
        println!("  {kind:?}: {}", broken.iter().filter(|(_, damage)| *damage == kind).count());
    }
    Ok(())
}
