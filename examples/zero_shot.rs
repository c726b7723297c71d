//! Says which of several labels fits an image best, by CLIP.
//!
//! ```text
//! cargo run --release --example zero_shot -- photo.png --labels "a cat,a dog"
//! cargo run --release --example zero_shot -- photo.png --labels "a cat,a dog" --model clip-vit-large-patch14
//! ```
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

#[path = "shared/encoders.rs"]
mod encoders;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use dalle2::clip::eval;
use encoders::{Encoders, Nonlinearity};

/// Say which of several labels fits an image best.
#[derive(Debug, Parser)]
struct Cli {
    /// The image
    image: PathBuf,
    /// The labels, separated by commas
    #[arg(long, value_delimiter = ',', required = true)]
    labels: Vec<String>,
    /// Sentence that labels are put into in place of {}; several are averaged
    #[arg(long, default_value = "{}")]
    template: Vec<String>,
    /// Pipeline directory, CLIP directory of transformers or open_clip, or state dict of OpenAI's CLIP
    #[arg(long, value_name = "PATH", default_value = "models/emoji")]
    model: PathBuf,
    /// Nonlinearity of a state dict that does not tell it
    #[arg(long, value_enum)]
    nonlinearity: Option<Nonlinearity>,
    /// Device: default, flex, cuda:0, wgpu, …
    #[arg(long, default_value = "default")]
    device: String,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let device = dalle2::device(&cli.device)?;
    let encoders = Encoders::load(&cli.model, cli.nonlinearity, &device)?;
    let labels: Vec<&str> = cli.labels.iter().map(|label| label.trim()).collect();
    let templates: Vec<&str> = cli.template.iter().map(String::as_str).collect();
    let candidates = eval::embed_labels(encoders.text(), &labels, &templates)?;
    let image = encoders.embed(&cli.image, &device)?;
    let answers = eval::classify(image, candidates, labels.len())?.remove(0);

    let best = answers.first().context("no labels")?;
    let weight = |cosine: f32| (f64::from(encoders.logit_scale) * f64::from(cosine - best.1)).exp();
    let total: f64 = answers.iter().map(|(_, cosine)| weight(*cosine)).sum();
    println!("{:>11}  {:>6}  label", "probability", "cosine");
    for (label, cosine) in &answers {
        println!("{:>10.1}%  {:>6.3}  {}", 100.0 * weight(*cosine) / total, cosine, labels[*label]);
    }
    println!("{}: {}", cli.image.display(), labels[best.0]);
    Ok(())
}
