//! Measures how well images fit captions: CLIPScore, 2.5 · max(cos, 0) (Hessel et al. 2021, arXiv 2104.08718, section 3).
//!
//! ```text
//! cargo run --release --example clip_score -- apple.png pear.png --caption "red apple" --caption "green pear"
//! ```
use std::path::PathBuf;

use crate::encoders::{Encoders, Nonlinearity};
use anyhow::Result;
use clap::Parser;
use dalle2::base::store::write_json;
use dalle2::clip::eval;
use serde_json::json;

/// Measure how well images fit captions.
#[derive(Debug, Parser)]
pub struct Cli {
    /// The images
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// One caption for all images, or as many as there are images, in their order
    #[arg(long, required = true)]
    caption: Vec<String>,
    /// Pipeline directory, CLIP directory of transformers or open_clip, or state dict of OpenAI's CLIP
    #[arg(long, value_name = "PATH", default_value = "models/emoji")]
    model: PathBuf,
    /// Nonlinearity of a state dict that does not tell it
    #[arg(long, value_enum)]
    nonlinearity: Option<Nonlinearity>,
    /// Device: default, flex, cuda:0, wgpu, …
    #[arg(long, default_value = "default")]
    device: String,
    /// Also writes the scores as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub fn run(cli: &Cli) -> Result<()> {
    let (images, captions) = (cli.images.len(), cli.caption.len());
    anyhow::ensure!(
        captions == 1 || captions == images,
        "{captions} captions for {images} images: give one, or one each"
    );
    let device = dalle2::device(&cli.device)?;
    let encoders = Encoders::load(&cli.model, cli.nonlinearity, &device)?;
    let mut rows = Vec::with_capacity(images);
    for (i, file) in cli.images.iter().enumerate() {
        let caption = cli.caption[i.min(captions - 1)].as_str();
        let text = encoders.text().encode(&[caption])?.pooled;
        let cosine = eval::classify(encoders.embed(file, &device)?, text, 1)?[0][0].1;
        rows.push((file, caption, cosine, 2.5 * cosine.max(0.0)));
    }
    println!("{:>6}  {:>9}  image: caption", "cosine", "CLIPScore");
    for (file, caption, cosine, score) in &rows {
        println!("{cosine:>6.3}  {score:>9.3}  {}: {caption}", file.display());
    }
    let mean = rows.iter().map(|row| row.3).sum::<f32>() / rows.len() as f32;
    if let Some(path) = &cli.json {
        let row = |(file, caption, cosine, score): &(&PathBuf, &str, f32, f32)| json!({"image": file, "caption": caption, "cosine": cosine, "clip_score": score});
        write_json(path, &json!({"mean": mean, "scores": rows.iter().map(row).collect::<Vec<_>>()}))?;
        println!("{}", path.display());
    }
    println!("mean CLIPScore {mean:.3}");
    Ok(())
}
