//! Draws the way from one image or caption to another, as a sheet and as an animated GIF.
//!
//! ```text
//! cargo run --release --example interpolate -- "emoji:red apple" "emoji:koala"
//! ```
use std::path::{Path, PathBuf};

use super::args as edit;
use anyhow::{Context, Result};
use clap::Parser;
use dalle2::NoisePath;
use dalle2::base::image::{LabelledImage, RgbImage};
use dalle2::base::store::write_file;

/// Hundredths of a second that a frame is shown; the ends stay longer.
const DELAY: u16 = 12;

/// Draw the way from one image to another.
#[derive(Debug, Parser)]
pub struct Cli {
    /// Image file, emoji:NAME, or else a caption
    from: String,
    /// Image file, emoji:NAME, or else a caption
    to: String,
    /// Frames, both ends included
    #[arg(long, value_name = "N", default_value_t = 9)]
    frames: usize,
    /// The same random noise in every frame, instead of the way from one image's noise to the other's
    #[arg(long)]
    fixed_noise: bool,
    /// PNG file of the sheet
    #[arg(long, value_name = "FILE", default_value = "out/interpolation.png")]
    out: PathBuf,
    /// GIF file, there and back
    #[arg(long, value_name = "FILE", default_value = "out/interpolation.gif")]
    gif: PathBuf,
    #[command(flatten)]
    edit: edit::EditArgs,
}

pub fn run(cli: &Cli) -> Result<()> {
    let (from, to) = (edit::source(&cli.from)?, edit::source(&cli.to)?);
    let pipeline = cli.edit.pipeline()?;
    let noise = if cli.fixed_noise { NoisePath::Fixed } else { NoisePath::Inverted };
    let bar = edit::bar()?;
    let interpolate = pipeline.interpolate(from, to).frames(cli.frames).noise_path(noise);
    let drawn = interpolate.request(cli.edit.request()).controls(edit::progress(&bar)).run()?;
    bar.finish_and_clear();
    write_gif(&drawn.images, &cli.gif)?;
    println!("{}", cli.gif.display());
    let last = (drawn.images.len() - 1) as f64;
    let label = |(i, image)| LabelledImage::new(image, format!("{:.2}", i as f64 / last));
    let row: Vec<LabelledImage> = drawn.images.into_iter().enumerate().map(label).collect();
    cli.edit.save_sheet(&[row], &format!("from {} to {}", cli.from, cli.to), &cli.out)
}

/// Writes the frames there and back, for ever.
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
