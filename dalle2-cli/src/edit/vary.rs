//! Draws variations of an image: a row for each noisiness, from the image's own noise and from random noise.
//!
//! ```text
//! cargo run --release --example variations -- "emoji:red apple"
//! ```

use std::path::PathBuf;

use super::args as edit;
use anyhow::Result;
use clap::Parser;
use dalle2::StartNoise;
use dalle2::base::image::LabelledImage;

/// Draw variations of an image.
#[derive(Debug, Parser)]
pub struct Cli {
    /// Image file, or emoji:NAME
    image: String,
    /// Noisiness of the rows, from 0 to 1
    #[arg(long, value_delimiter = ',', default_values_t = [0.1, 0.3, 1.0])]
    eta: Vec<f64>,
    /// Variations per row
    #[arg(long, value_name = "N", default_value_t = 6)]
    num: usize,
    /// PNG file
    #[arg(long, value_name = "FILE", default_value = "out/variations.png")]
    out: PathBuf,
    #[command(flatten)]
    edit: edit::EditArgs,
}

pub fn run(cli: &Cli) -> Result<()> {
    let image = edit::image(&cli.image)?;
    let pipeline = cli.edit.pipeline()?;
    let bar = edit::bar()?;
    let inversion = pipeline.invert(&image).request(cli.edit.request()).controls(edit::progress(&bar)).run()?;
    let mut rows = vec![vec![
        LabelledImage::new(image.clone(), &cli.image),
        LabelledImage::new(inversion.reconstruction, format!("eta 0: {:.1} dB", inversion.psnr)),
    ]];
    let inverted = cli.eta.iter().map(|&eta| (eta, StartNoise::Inverted, "own noise"));
    for (eta, start, noise) in inverted.chain([(0.0, StartNoise::Random, "random noise")]) {
        let vary = pipeline.vary(&image).eta(eta).start_noise(start);
        let request = cli.edit.request().num_images(cli.num);
        let drawn = vary.request(request).controls(edit::progress(&bar)).run()?;
        rows.push(
            drawn.images.into_iter().map(|image| LabelledImage::new(image, format!("eta {eta}, {noise}"))).collect(),
        );
    }
    bar.finish_and_clear();
    cli.edit.save_sheet(&rows, &format!("variations of {}", cli.image), &cli.out)
}
