//! The error of inversion and reconstruction.

use std::path::PathBuf;

use anyhow::Result;
use dalle2::base::image::LabelledImage;
use serde::Serialize;

use crate::args::JsonArgs;
use crate::edit::common::{EditArgs, emoji, some_names};
use crate::progress::Items;

/// Maximum number of images on the sheet.
const SHOWN: usize = 8;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Number of images, spread over the emoji of the training set
    #[arg(long, value_name = "N", default_value_t = 16, alias = "num")]
    num_images: usize,
    /// Numbers of steps to compare
    #[arg(long, value_delimiter = ',', default_values_t = [5, 10, 25, 50, 100])]
    by_steps: Vec<usize>,
    /// Evaluations of the network per step of the inversion
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 3])]
    evaluations: Vec<usize>,
    #[command(flatten)]
    json: JsonArgs,
    /// PNG file of images and their reconstructions
    #[arg(long, value_name = "FILE", default_value = "out/inversion.png", alias = "sheet")]
    out: PathBuf,
    #[command(flatten)]
    edit: EditArgs,
}

/// Peak signal-to-noise ratio over the images, in decibel.
#[derive(Debug, Serialize)]
struct Row {
    steps: usize,
    evaluations: usize,
    mean: f64,
    lowest: f64,
}

pub fn run(args: &Args) -> Result<()> {
    let seed = args.edit.fixed_seed();
    let names = some_names(args.num_images)?;
    let num = names.len();
    let pipeline = args.edit.pipeline()?;
    let size = pipeline.decoder().image_size() as u32;
    let images = names.iter().map(|name| emoji(name, size)).collect::<Result<Vec<_>>>()?;
    let progress = Items::new(args.by_steps.len() * args.evaluations.len() * num, "images");
    let mut rows = Vec::new();
    let shown: Vec<LabelledImage> =
        images.iter().zip(&names).take(SHOWN).map(|(image, name)| LabelledImage::new(image.clone(), name)).collect();
    let mut sheet = vec![shown];
    for &evaluations in &args.evaluations {
        for &steps in &args.by_steps {
            let mut psnrs = Vec::with_capacity(num);
            let mut cells = Vec::new();
            for image in &images {
                let inversion = pipeline.invert(image).evaluations(evaluations);
                let inversion = inversion.request(args.edit.request(seed).decoder_steps(steps)).run()?;
                if cells.len() < SHOWN {
                    let label = format!("{steps} steps x {evaluations}: {:.1} dB", inversion.psnr);
                    cells.push(LabelledImage::new(inversion.reconstruction, label));
                }
                psnrs.push(inversion.psnr);
                progress.add(1);
            }
            sheet.push(cells);
            let mean = psnrs.iter().sum::<f64>() / num as f64;
            rows.push(Row { steps, evaluations, mean, lowest: psnrs.iter().copied().fold(f64::INFINITY, f64::min) });
        }
    }
    drop(progress);
    println!("| steps | evaluations per step | mean PSNR | lowest |\n|---|---|---|---|");
    for Row { steps, evaluations, mean, lowest } in &rows {
        println!("| {steps} | {evaluations} | {mean:.1} dB | {lowest:.1} dB |");
    }
    args.json.write(&rows)?;
    args.edit.save_sheet(&sheet, "reconstructions", seed, &args.out)
}
