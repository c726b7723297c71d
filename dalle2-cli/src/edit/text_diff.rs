//! Text diffs: an image changes along the difference of two captions.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use dalle2::base::image::LabelledImage;

use super::common::{EditArgs, image};
use crate::progress::Stages;

const EXAMPLES: &str = "Examples:
  dalle2 text-diff \"emoji:red heart\" --from \"red heart\" --to \"blue heart\"
  dalle2 text-diff photo.png --to \"a photo in winter\" --strength 0.3 --frames 4";

/// Change an image by the difference of two captions
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Cli {
    /// Image file, or emoji:NAME
    image: String,
    /// Caption of the image; may be empty
    #[arg(long, default_value = "")]
    from: String,
    /// Caption to change the image towards
    #[arg(long)]
    to: String,
    /// How far the embedding turns, from 0 to 1
    #[arg(long, default_value_t = 0.5)]
    strength: f64,
    /// Images along the way
    #[arg(long, value_name = "N", default_value_t = 5)]
    frames: usize,
    /// PNG file
    #[arg(long, value_name = "FILE", default_value = "out/text_diff.png", help_heading = "Output")]
    out: PathBuf,
    #[command(flatten)]
    edit: EditArgs,
}

pub fn run(cli: &Cli) -> Result<()> {
    let image = image(&cli.image)?;
    let pipeline = cli.edit.pipeline()?;
    let seed = cli.edit.sampling.seed();
    let stages = Stages::new();
    let text_diff = pipeline.text_diff(&image, &cli.from, &cli.to).strength(cli.strength).frames(cli.frames);
    let frames = text_diff.request(cli.edit.request(seed)).controls(stages.controls()).run()?.images;
    drop(stages);
    let mut row = vec![LabelledImage::new(image, &cli.image)];
    for (i, image) in frames.into_iter().enumerate() {
        let strength = cli.strength * (i + 1) as f64 / cli.frames as f64;
        row.push(LabelledImage::new(image, format!("{strength:.2} {}", cli.to)));
    }
    cli.edit.save_sheet(&[row], &format!("{}: {:?} to {:?}", cli.image, cli.from, cli.to), seed, &cli.out)
}
