//! Variations of an image: one row for each noise level of the sampler, from the image's own noise and from random noise.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use dalle2::StartNoise;
use dalle2::base::image::LabelledImage;

use super::common::{EditArgs, image};
use crate::progress::Stages;

const EXAMPLES: &str = "Examples:
  dalle2 vary photo.png
  dalle2 vary \"emoji:red apple\" --eta 0.2,0.6 --num-images 4 --seed 7";

/// Generate variations of an image
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Cli {
    /// Image file, or emoji:NAME
    image: String,
    /// DDIM noise level η of each row, from 0 to 1
    #[arg(long, value_delimiter = ',', default_values_t = [0.1, 0.3, 1.0])]
    eta: Vec<f64>,
    /// Variations per row
    #[arg(long, value_name = "N", default_value_t = 6, alias = "num")]
    num_images: usize,
    /// PNG file
    #[arg(long, value_name = "FILE", default_value = "out/variations.png", help_heading = "Output")]
    out: PathBuf,
    #[command(flatten)]
    edit: EditArgs,
}

pub fn run(cli: &Cli) -> Result<()> {
    let image = image(&cli.image)?;
    let pipeline = cli.edit.pipeline()?;
    let seed = cli.edit.sampling.seed();
    let stages = Stages::new();
    let inversion = pipeline.invert(&image).request(cli.edit.request(seed)).controls(stages.controls()).run()?;
    let mut rows = vec![vec![
        LabelledImage::new(image.clone(), &cli.image),
        LabelledImage::new(inversion.reconstruction, format!("eta 0: {:.1} dB", inversion.psnr)),
    ]];
    let inverted = cli.eta.iter().map(|&eta| (eta, StartNoise::Inverted, "own noise"));
    for (eta, start, noise) in inverted.chain([(0.0, StartNoise::Random, "random noise")]) {
        let vary = pipeline.vary(&image).eta(eta).start_noise(start);
        let request = cli.edit.request(seed).num_images(cli.num_images);
        let images = vary.request(request).controls(stages.controls()).run()?.images;
        rows.push(images.into_iter().map(|image| LabelledImage::new(image, format!("eta {eta}, {noise}"))).collect());
    }
    drop(stages);
    cli.edit.save_sheet(&rows, &format!("variations of {}", cli.image), seed, &cli.out)
}
