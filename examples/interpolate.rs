//! Interpolates between two captions: frames that change from one image into the other.
//!
//! ```text
//! cargo run --release --example interpolate -- "red apple" "koala"
//! ```
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

use std::path::PathBuf;

use clap::Parser;
use dalle2::base::image::{LabelledImage, contact_sheet, save_png};
use dalle2::{Device, Pipeline};

/// Interpolate between two captions
#[derive(Debug, Parser)]
struct Cli {
    /// Caption of the first frame
    from: String,
    /// Caption of the last frame
    to: String,
    /// Pipeline directory
    #[arg(long, value_name = "DIR", default_value = "models/emoji")]
    model: PathBuf,
    /// Number of frames
    #[arg(long, value_name = "N", default_value_t = 7)]
    frames: usize,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let pipeline = Pipeline::from_pretrained(&cli.model, &Device::default())?;

    // Either end may be a caption, an image or an embedding.
    let generation = pipeline.interpolate(cli.from, cli.to).frames(cli.frames).seed(1).run()?;

    let frames = generation.images.into_iter().enumerate();
    let row = frames.map(|(i, image)| LabelledImage::new(image, format!("frame {i}"))).collect();
    save_png(&contact_sheet(&[row], 128), "out/interpolation.png")?;
    println!("out/interpolation.png");
    Ok(())
}
