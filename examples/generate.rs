//! Generates images for a caption, writes them as PNG and prints the seconds of each stage.
//!
//! ```text
//! cargo run --release --example generate -- "red apple" --num-images 4 --seed 7
//! ```
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use dalle2::{GenerateRequest, Pipeline};

/// Generate images for a caption
#[derive(Debug, Parser)]
struct Cli {
    /// The caption, for example "red apple"
    caption: String,
    /// Pipeline directory
    #[arg(long, value_name = "DIR", default_value = "models/emoji")]
    model: PathBuf,
    /// Device: default, flex, cuda:0, wgpu, …
    #[arg(long, default_value = "default")]
    device: String,
    /// Number of images
    #[arg(long, value_name = "N", default_value_t = 1)]
    num_images: usize,
    /// Seed of the first image; random if not given
    #[arg(long)]
    seed: Option<u64>,
    /// PNG file; further images are numbered: image-2.png, …
    #[arg(long, value_name = "FILE", default_value = "out/image.png")]
    out: PathBuf,
}

fn main() -> anyhow::Result<()> {
    dalle2::keep_memory();
    let cli = Cli::parse();
    let start = Instant::now();
    let pipeline = Pipeline::from_pretrained(&cli.model, &dalle2::device(&cli.device)?)?;
    println!("{:14} {:6.2} s", "loading", start.elapsed().as_secs_f64());

    let request = GenerateRequest::new(&cli.caption).num_images(cli.num_images);
    let request = if let Some(seed) = cli.seed { request.seed(seed) } else { request };
    let generation = pipeline.generate(request)?;
    for time in &generation.times {
        println!("{:14} {:6.2} s", time.stage.to_string(), time.duration.as_secs_f64());
    }
    println!("seed {}", generation.seeds[0]);

    for (i, image) in generation.images.iter().enumerate() {
        let stem = cli.out.file_stem().unwrap_or_default().to_string_lossy();
        let number = if i == 0 { String::new() } else { format!("-{}", i + 1) };
        let file = cli.out.with_file_name(format!("{stem}{number}.png"));
        dalle2::base::image::save_png(image, &file)?;
        println!("{}", file.display());
    }
    Ok(())
}
