//! Trains CLIP on captioned images and adds both towers to the pipeline directory.
//!
//! ```text
//! cargo run --release --example train_clip -- --preset tiny
//! cargo run --release --example train_clip -- --preset emoji --batch-size 1024 --chunk 128
//! cargo run --release --features cuda --example train_clip -- --preset small --devices cuda:0,cuda:1
//! ```
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

use clap::Parser;
use dalle2_emoji::open_training_data;
use dalle2_train::cli::{ClipArgs, init_logging};

/// Train CLIP: an image encoder and a text encoder that agree.
#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    clip: ClipArgs,
}

fn main() -> anyhow::Result<()> {
    dalle2::keep_memory();
    let Cli { clip } = Cli::parse();
    init_logging();
    let args = &clip.train;
    let data = open_training_data(&args.data, args.subset.as_deref(), args.preset, args.workers)?;
    println!("{}", clip.recipe()?.run(data)?);
    Ok(())
}
