//! Changes an image from what one caption says to what another says.
//!
//! ```text
//! cargo run --release --example text_diff -- "emoji:red heart" --from "red heart" --to "blue heart"
//! ```

use std::path::PathBuf;

use super::args as edit;
use anyhow::Result;
use clap::Parser;
use dalle2::base::image::LabelledImage;

/// Change an image by the difference of two captions.
#[derive(Debug, Parser)]
pub struct Cli {
    /// Image file, or emoji:NAME
    image: String,
    /// What the image shows; may be empty
    #[arg(long, default_value = "")]
    from: String,
    /// What it should show
    #[arg(long)]
    to: String,
    /// How far the embedding turns, from 0 to 1
    #[arg(long, default_value_t = 0.5)]
    strength: f64,
    /// Images on the way
    #[arg(long, value_name = "N", default_value_t = 5)]
    frames: usize,
    /// PNG file
    #[arg(long, value_name = "FILE", default_value = "out/text_diff.png")]
    out: PathBuf,
    #[command(flatten)]
    edit: edit::EditArgs,
}

pub fn run(cli: &Cli) -> Result<()> {
    let image = edit::image(&cli.image)?;
    let pipeline = cli.edit.pipeline()?;
    let bar = edit::bar()?;
    let text_diff = pipeline.text_diff(&image, &cli.from, &cli.to).strength(cli.strength).frames(cli.frames);
    let drawn = text_diff.request(cli.edit.request()).controls(edit::progress(&bar)).run()?;
    bar.finish_and_clear();
    let mut row = vec![LabelledImage::new(image, &cli.image)];
    for (i, image) in drawn.images.into_iter().enumerate() {
        let strength = cli.strength * (i + 1) as f64 / cli.frames as f64;
        row.push(LabelledImage::new(image, format!("{strength:.2} {}", cli.to)));
    }
    cli.edit.save_sheet(&[row], &format!("{}: {:?} to {:?}", cli.image, cli.from, cli.to), &cli.out)
}
