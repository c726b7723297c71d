//! Writes the CLIP embeddings of a data set, so that priors train without CLIP.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use dalle2::clip::train::Jitter;
use dalle2_emoji::{CACHE, EmojiStore, Subset, pair_splits};
use dalle2_train::recipes::{CLIP_JITTER, EmbedJob, FrozenClip, ImageData, PairImages, PairSplits, Variations};

use crate::args::DeviceArgs;
use crate::outcome::check_usage;

const EXAMPLES: &str = "Examples:
  dalle2 embed --out data/embedded
  dalle2 embed --data my-images --model runs/mine/export --out data/mine --variations 1

An interrupted run resumes where it stopped; damaged shards are written again.";

/// Write the CLIP embeddings of a data set for training priors
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Cli {
    /// Directory to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Pipeline directory of the CLIP encoders
    #[arg(long, value_name = "DIR", default_value = "models/emoji")]
    model: PathBuf,
    /// `emoji`, or a folder, an index or webdataset shards; see docs/data.md
    #[arg(long, default_value = "emoji", value_name = "emoji|PATH")]
    data: String,
    /// Subset of the emoji: tiny, small or full
    #[arg(long, default_value_t = Subset::Small)]
    subset: Subset,
    /// Part of the data set
    #[arg(long, value_enum, default_value = "train")]
    split: Part,
    /// One in N images is held out; for data other than the emoji
    #[arg(long, value_name = "N", default_value_t = 10)]
    hold_out: usize,
    /// Augmented images per pair, each with a random shift and scale
    #[arg(long, value_name = "N", default_value_t = 4)]
    variations: usize,
    /// Maximum shift along each axis, as a share of the side
    #[arg(long, default_value_t = CLIP_JITTER.shift)]
    shift: f32,
    /// Maximum change of scale
    #[arg(long, default_value_t = CLIP_JITTER.scale)]
    scale: f32,
    /// Pairs per file
    #[arg(long, value_name = "N", default_value_t = 1024)]
    shard_size: usize,
    /// Seed of the augmentation
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Train,
    HeldOut,
}

pub fn run(cli: &Cli) -> Result<()> {
    let start = Instant::now();
    for (name, value) in [("--shift", cli.shift), ("--scale", cli.scale)] {
        check_usage!((0.0..0.5).contains(&value), "{name} {value}: must be at least 0 and below 0.5");
    }
    check_usage!(cli.variations > 0, "--variations 0: at least 1");
    check_usage!(cli.hold_out > 1, "--hold-out {}: at least 2", cli.hold_out);
    let (images, splits) = open(cli)?;
    let pairs = match cli.split {
        Part::Train => &splits.train,
        Part::HeldOut => &splits.held_out,
    };
    ensure!(!pairs.is_empty(), "this part of {} is empty", cli.data);
    let clip = FrozenClip::load(&cli.model, &cli.device.open()?)?;
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
