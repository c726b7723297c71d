//! CLIPScore, 2.5 · max(cos, 0) (Hessel et al. 2021, arXiv 2104.08718, section 3).

use std::path::PathBuf;

use crate::args::{DeviceArgs, JsonArgs};
use crate::encoders::{Encoders, Nonlinearity};
use crate::outcome::check_usage;
use anyhow::Result;
use clap::Args;
use dalle2::clip::eval;
use serde_json::json;

const EXAMPLES: &str = "Examples:
  dalle2 clip-score apple.png pear.png --caption \"red apple\" --caption \"green pear\"";

/// Measure the similarity of images and captions (CLIPScore)
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Cli {
    /// The images
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// One caption for all images, or one per image in the same order
    #[arg(long, required = true)]
    caption: Vec<String>,
    /// Pipeline directory, CLIP directory of transformers or open_clip, or state dict of OpenAI's CLIP
    #[arg(long, value_name = "PATH", default_value = "models/emoji")]
    model: PathBuf,
    /// Nonlinearity, for a state dict that does not record it
    #[arg(long, value_enum)]
    nonlinearity: Option<Nonlinearity>,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    json: JsonArgs,
}

pub fn run(cli: &Cli) -> Result<()> {
    let (images, captions) = (cli.images.len(), cli.caption.len());
    check_usage!(
        captions == 1 || captions == images,
        "{captions} captions for {images} images: expected 1 or {images}"
    );
    let device = cli.device.open()?;
    let encoders = Encoders::load(&cli.model, cli.nonlinearity, &device)?;
    let mut rows = Vec::with_capacity(images);
    let mut truncated = 0;
    for (i, file) in cli.images.iter().enumerate() {
        let caption = cli.caption[i.min(captions - 1)].as_str();
        let (text, count) = encoders.text().encode_truncated(&[caption])?;
        truncated += count;
        let cosine = eval::classify(encoders.embed(file, &device)?, text.pooled, 1)?[0][0].1;
        rows.push((file, caption, cosine, 2.5 * cosine.max(0.0)));
    }
    if truncated > 0 {
        eprintln!("{truncated} captions exceed the context and were truncated");
    }
    println!("{:>6}  {:>9}  image: caption", "cosine", "CLIPScore");
    for (file, caption, cosine, score) in &rows {
        println!("{cosine:>6.3}  {score:>9.3}  {}: {caption}", file.display());
    }
    let mean = rows.iter().map(|row| row.3).sum::<f32>() / rows.len() as f32;
    let row = |(image, caption, cosine, score): &(&PathBuf, &str, f32, f32)| json!({ "image": image, "caption": caption, "cosine": cosine, "clip_score": score });
    cli.json.write(&json!({ "mean": mean, "scores": rows.iter().map(row).collect::<Vec<_>>() }))?;
    println!("mean CLIPScore {mean:.3}");
    Ok(())
}
