//! Writes what a frozen CLIP says of a data set, so that priors train from it without CLIP.
//!
//! ```text
//! cargo run --release --example embed_dataset -- --out data/embedded
//! cargo run --release --example train_prior -- --preset emoji --embeddings data/embedded
//! ```
//!
//! An interrupted run goes on where it stopped; damaged shards are written again.
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use dalle2::clip::train::Jitter;
use dalle2_emoji::{CACHE, EmojiStore, Subset, pair_splits};
use dalle2_train::recipes::{CLIP_JITTER, EmbedJob, FrozenClip, ImageData, PairImages, PairSplits, Variations};

/// Embed a data set.
#[derive(Debug, Parser)]
pub struct Cli {
    /// Directory of the set
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Pipeline directory whose CLIP is used
    #[arg(long, value_name = "DIR", default_value = "models/emoji")]
    model: PathBuf,
    /// `emoji`, or data of one's own: a folder, an index or webdataset shards, see docs/data.md
    #[arg(long, default_value = "emoji", value_name = "emoji|PATH")]
    data: String,
    /// Which emoji: tiny, small or full
    #[arg(long, default_value_t = Subset::Small)]
    subset: Subset,
    /// Which pairs
    #[arg(long, value_enum, default_value = "train")]
    split: Part,
    /// Of one's own images, one in so many is held out
    #[arg(long, value_name = "N", default_value_t = 10)]
    hold_out: usize,
    /// Images of each pair, each moved and scaled another way
    #[arg(long, value_name = "N", default_value_t = 4)]
    variations: usize,
    /// Largest shift of an image along each axis, as a share of its side
    #[arg(long, default_value_t = CLIP_JITTER.shift)]
    shift: f32,
    /// Largest change of an image's scale
    #[arg(long, default_value_t = CLIP_JITTER.scale)]
    scale: f32,
    /// Pairs in a file
    #[arg(long, value_name = "N", default_value_t = 1024)]
    shard_size: usize,
    /// Seed of the variations
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Device: default, flex, cuda:0, wgpu, …
    #[arg(long, default_value = "default")]
    device: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Train,
    HeldOut,
}

pub fn run(cli: &Cli) -> Result<()> {
    let start = Instant::now();
    for (name, value) in [("--shift", cli.shift), ("--scale", cli.scale)] {
        ensure!((0.0..0.5).contains(&value), "{name} {value}: must be at least 0 and below 0.5");
    }
    ensure!(cli.variations > 0, "--variations 0: at least one image of each pair");
    ensure!(cli.hold_out > 1, "--hold-out {}: at least 2, or nothing is left to train on", cli.hold_out);
    let (images, splits) = open(cli)?;
    let pairs = match cli.split {
        Part::Train => &splits.train,
        Part::HeldOut => &splits.held_out,
    };
    ensure!(!pairs.is_empty(), "there is no pair in this part of {}", cli.data);
    let clip = FrozenClip::load(&cli.model, &dalle2::device(&cli.device)?)?;
    let jitter = Jitter { shift: cli.shift, scale: cli.scale };
    let variations = Variations { count: cli.variations, jitter, seed: cli.seed };
    let source = format!("{} {} {:?} of {}", cli.data, cli.subset, cli.split, cli.model.display());
    let job = EmbedJob { source, images: &*images, pairs, variations, shard_size: cli.shard_size };
    let set = job.run(&cli.out, &clip)?;
    let seconds = start.elapsed().as_secs_f64();
    println!("{} pairs of {} captions in {} ({seconds:.0} s)", set.len(), pairs.len(), cli.out.display());
    Ok(())
}

fn open(cli: &Cli) -> Result<(Arc<dyn PairImages>, PairSplits)> {
    if cli.data == "emoji" {
        let store = Arc::new(EmojiStore::open(&[], Path::new(CACHE))?);
        let splits = pair_splits(&store, cli.subset)?;
        return Ok((store, splits));
    }
    let data = Arc::new(ImageData::open(&[&cli.data], None)?);
    let splits = data.pair_splits(cli.hold_out)?;
    Ok((data, splits))
}
