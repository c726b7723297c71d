//! Trains the decoder on the image embeddings and captions of a frozen CLIP, and adds it to the pipeline directory.
//!
//! ```text
//! cargo run --release --example train_decoder -- --preset tiny
//! cargo run --release --example train_decoder -- --preset tiny --inpaint
//! ```
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

use clap::Parser;
use dalle2_emoji::open_training_data;
use dalle2_train::cli::{DecoderArgs, init_logging};

/// Train the decoder: images from CLIP image embeddings and captions.
#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    decoder: DecoderArgs,
}

fn main() -> anyhow::Result<()> {
    dalle2::keep_memory();
    let Cli { decoder } = Cli::parse();
    init_logging();
    let args = &decoder.train;
    let data = open_training_data(&args.data, args.subset.as_deref(), args.preset, args.workers)?;
    println!("{}", decoder.recipe()?.run(data)?);
    Ok(())
}
