//! Trains an upsampler on crops of large images, and adds it to the pipeline directory.
//!
//! ```text
//! cargo run --release --example train_upsampler -- --preset tiny
//! cargo run --release --example train_upsampler -- --preset tiny --stage second
//! ```
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

use clap::Parser;
use dalle2_emoji::open_training_data;
use dalle2_train::cli::{UpsamplerArgs, init_logging};

/// Train an upsampler: four times larger images, or eight times with the second one.
#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    upsampler: UpsamplerArgs,
}

fn main() -> anyhow::Result<()> {
    dalle2::keep_memory();
    let Cli { upsampler } = Cli::parse();
    init_logging();
    let args = &upsampler.train;
    let data = open_training_data(&args.data, args.subset.as_deref(), args.preset, args.workers)?;
    println!("{}", upsampler.recipe()?.run(data)?);
    Ok(())
}
