//! Generates variations of an image: other images with the same CLIP embedding.
//!
//! ```text
//! cargo run --release --example variations -- photo.png
//! ```
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

use std::path::PathBuf;

use clap::Parser;
use dalle2::base::image::{open, save_png};
use dalle2::{Device, Pipeline};

/// Generate variations of an image
#[derive(Debug, Parser)]
struct Cli {
    /// The image
    image: PathBuf,
    /// Pipeline directory
    #[arg(long, value_name = "DIR", default_value = "models/emoji")]
    model: PathBuf,
    /// Number of variations
    #[arg(long, value_name = "N", default_value_t = 4)]
    num_images: usize,
    /// DDIM noise level η, from 0 (like the image) to 1 (least like it)
    #[arg(long, default_value_t = 0.7)]
    eta: f64,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let pipeline = Pipeline::from_pretrained(&cli.model, &Device::default())?;
    let image = open(&cli.image)?;

    let generation = pipeline.vary(&image).eta(cli.eta).num_images(cli.num_images).seed(1).run()?;

    for (i, image) in generation.images.iter().enumerate() {
        let file = format!("out/variation-{i}.png");
        save_png(image, &file)?;
        println!("{file}");
    }
    Ok(())
}
