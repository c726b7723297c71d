//! Zero-shot classification with CLIP.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use dalle2::clip::eval;

use crate::args::DeviceArgs;
use crate::encoders::{Encoders, Nonlinearity};

const EXAMPLES: &str = "Examples:
  dalle2 zero-shot photo.png --labels \"a cat,a dog\"
  dalle2 zero-shot photo.png --labels \"a cat,a dog\" --model clip-vit-large-patch14";

/// Classify an image among labels with CLIP
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Cli {
    /// The image
    image: PathBuf,
    /// The labels, separated by commas
    #[arg(long, value_delimiter = ',', required = true)]
    labels: Vec<String>,
    /// Template with {} for the label; repeatable, templates are averaged
    #[arg(long, default_value = "{}")]
    template: Vec<String>,
    /// Pipeline directory, CLIP directory of transformers or open_clip, or state dict of OpenAI's CLIP
    #[arg(long, value_name = "PATH", default_value = "models/emoji")]
    model: PathBuf,
    /// Nonlinearity, for a state dict that does not record it
    #[arg(long, value_enum)]
    nonlinearity: Option<Nonlinearity>,
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(cli: &Cli) -> Result<()> {
    let device = cli.device.open()?;
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
