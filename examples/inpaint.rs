//! Inpaints the right half of an image, with a caption for the result.
//!
//! ```text
//! cargo run --release --example inpaint -- photo.png "a green heart"
//! ```
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

use std::path::PathBuf;

use clap::Parser;
use dalle2::base::image::{Mask, open, save_png};
use dalle2::{Device, Pipeline};

/// Inpaint the right half of an image
#[derive(Debug, Parser)]
struct Cli {
    /// The image
    image: PathBuf,
    /// Caption of the result
    caption: String,
    /// Pipeline directory
    #[arg(long, value_name = "DIR", default_value = "models/emoji")]
    model: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let pipeline = Pipeline::from_pretrained(&cli.model, &Device::default())?;

    // `Mask::edit` makes a mask from an image: white regions are generated anew.
    let image = open(&cli.image)?;
    let (width, height) = image.dimensions();
    let mask = Mask::edit_where(width, height, |x, _| x >= width / 2);
    let generation = pipeline.inpaint(&image, &mask).caption(&cli.caption).seed(1).run()?;

    save_png(&generation.images[0], "out/inpainted.png")?;
    println!("out/inpainted.png");
    Ok(())
}
