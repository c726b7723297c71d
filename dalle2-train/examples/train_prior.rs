//! Trains a prior on the embeddings of a frozen CLIP, and adds it to the pipeline directory.
//!
//! ```text
//! cargo run --release --example train_prior -- --preset tiny
//! cargo run --release --example train_prior -- --preset tiny --kind autoregressive
//! ```
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

use std::sync::Arc;

use clap::Parser;
use dalle2_emoji::open_training_data;
use dalle2_train::cli::{PriorArgs, init_logging};
use dalle2_train::data::EmbeddingSet;
use dalle2_train::recipes::prior::PriorData;

/// Train the prior: CLIP image embeddings from captions.
#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    prior: PriorArgs,
}

fn main() -> anyhow::Result<()> {
    dalle2::keep_memory();
    let Cli { prior } = Cli::parse();
    init_logging();
    let args = &prior.train;
    let data = match &prior.embeddings {
        Some(dir) => PriorData::Embedded(Arc::new(EmbeddingSet::open(dir)?)),
        None => PriorData::Images(open_training_data(&args.data, args.subset.as_deref(), args.preset, args.workers)?),
    };
    println!("{}", prior.recipe()?.run(&data)?);
    Ok(())
}
