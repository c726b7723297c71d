//! Interpolations between two images or captions, as a sheet and as an animated GIF.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use dalle2::NoisePath;
use dalle2::base::image::{LabelledImage, RgbImage};
use dalle2::base::store::write_file;

use super::common::{EditArgs, source};
use crate::progress::Stages;

/// Time per frame in hundredths of a second; the ends stay longer.
const DELAY: u16 = 12;

const EXAMPLES: &str = "Examples:
  dalle2 interpolate \"emoji:red apple\" emoji:koala
  dalle2 interpolate photo.png \"a green apple\" --frames 15 --seed 7 --gif out/apple.gif";

/// Interpolate between two images or captions
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Cli {
    /// Image file, emoji:NAME, or else a caption
    from: String,
    /// Image file, emoji:NAME, or else a caption
    to: String,
    /// Frames, both ends included
    #[arg(long, value_name = "N", default_value_t = 9)]
    frames: usize,
    /// Starts every frame from the same random noise, instead of interpolating the noise of both images
    #[arg(long)]
    fixed_noise: bool,
    /// PNG file of the sheet
    #[arg(long, value_name = "FILE", default_value = "out/interpolation.png", help_heading = "Output")]
    out: PathBuf,
    /// GIF file, forwards and backwards
    #[arg(long, value_name = "FILE", default_value = "out/interpolation.gif", help_heading = "Output")]
    gif: PathBuf,
    #[command(flatten)]
    edit: EditArgs,
}

pub fn run(cli: &Cli) -> Result<()> {
    let (from, to) = (source(&cli.from)?, source(&cli.to)?);
    let pipeline = cli.edit.pipeline()?;
    let seed = cli.edit.sampling.seed();
    let noise = if cli.fixed_noise { NoisePath::Fixed } else { NoisePath::Inverted };
    let interpolate = pipeline.interpolate(from, to).frames(cli.frames).noise_path(noise);
    let stages = Stages::new();
    let frames = interpolate.request(cli.edit.request(seed)).controls(stages.controls()).run()?.images;
    drop(stages);
    write_gif(&frames, &cli.gif)?;
    println!("{}", cli.gif.display());
    let last = (frames.len() - 1) as f64;
    let label = |(i, image)| LabelledImage::new(image, format!("{:.2}", i as f64 / last));
    let row: Vec<LabelledImage> = frames.into_iter().enumerate().map(label).collect();
    cli.edit.save_sheet(&[row], &format!("from {} to {}", cli.from, cli.to), seed, &cli.out)
}

/// Writes the frames forwards and backwards in an endless loop.
fn write_gif(frames: &[RgbImage], file: &Path) -> Result<()> {
    let first = frames.first().context("no frame to write")?;
    let (width, height) = (u16::try_from(first.width())?, u16::try_from(first.height())?);
    let mut bytes = Vec::new();
    let mut encoder = gif::Encoder::new(&mut bytes, width, height, &[])?;
    encoder.set_repeat(gif::Repeat::Infinite)?;
    let back = frames.iter().rev().skip(1).take(frames.len().saturating_sub(2));
    for (i, image) in frames.iter().chain(back).enumerate() {
        let mut frame = gif::Frame::from_rgb_speed(width, height, image, 10);
        frame.delay = if i == 0 || i == frames.len() - 1 { 5 * DELAY } else { DELAY };
        encoder.write_frame(&frame)?;
    }
    drop(encoder);
    Ok(write_file(file, &bytes)?)
}
