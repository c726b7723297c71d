//! Classifies an image among labels by CLIP: the label with the most similar caption wins.
//!
//! ```text
//! cargo run --release --example zero_shot -- photo.png "a cat" "a dog"
//! ```
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use dalle2::base::image::{fit_square, open, to_tensor};
use dalle2::clip::eval::{classify, embed_labels};
use dalle2::{Device, Pipeline};

/// Classify an image among labels
#[derive(Debug, Parser)]
struct Cli {
    /// The image
    image: PathBuf,
    /// The labels
    #[arg(required = true)]
    labels: Vec<String>,
    /// Pipeline directory
    #[arg(long, value_name = "DIR", default_value = "models/emoji")]
    model: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let device = Device::default();
    let pipeline = Pipeline::from_pretrained(&cli.model, &device)?;
    let encoder = pipeline.image_encoder().context("the pipeline lacks an image encoder")?;

    let labels: Vec<&str> = cli.labels.iter().map(String::as_str).collect();
    let label_embeddings = embed_labels(pipeline.text_encoder(), &labels, &["{}"])?;
    let image = fit_square(&open(&cli.image)?, 64);
    let image_embedding = encoder.encode(to_tensor(&[image], &device)?)?;

    // The labels by falling cosine similarity, for the one image.
    for (label, cosine) in &classify(image_embedding, label_embeddings, labels.len())?[0] {
        println!("{cosine:6.3}  {}", labels[*label]);
    }
    Ok(())
}
