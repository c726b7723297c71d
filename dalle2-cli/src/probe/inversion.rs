//! The error of inversion and reconstruction.

use std::path::PathBuf;

use anyhow::Result;
use dalle2::base::image::LabelledImage;
use dalle2::base::store::write_json;
use indicatif::ProgressBar;
use serde::Serialize;

use crate::edit::args::{EditArgs, emoji, some_names};

/// Images on the sheet, at most.
const SHOWN: usize = 8;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Images, spread over the emoji of the training set
    #[arg(long, value_name = "N", default_value_t = 16)]
    num: usize,
    /// Numbers of steps
    #[arg(long, value_delimiter = ',', default_values_t = [5, 10, 25, 50, 100])]
    by_steps: Vec<usize>,
    /// Evaluations of the network per step of the inversion
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 3])]
    evaluations: Vec<usize>,
    /// Writes the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes images with their reconstructions as PNG
    #[arg(long, value_name = "FILE", default_value = "out/inversion.png")]
    sheet: PathBuf,
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
    let names = some_names(args.num)?;
    let num = names.len();
    let pipeline = args.edit.pipeline()?;
    let size = pipeline.decoder().image_size() as u32;
    let images = names.iter().map(|name| emoji(name, size)).collect::<Result<Vec<_>>>()?;
    let bar = ProgressBar::new((args.by_steps.len() * args.evaluations.len() * num) as u64);
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
                let inversion = inversion.request(args.edit.request().decoder_steps(steps)).run()?;
                if cells.len() < SHOWN {
                    let label = format!("{steps} steps x {evaluations}: {:.1} dB", inversion.psnr);
                    cells.push(LabelledImage::new(inversion.reconstruction, label));
                }
                psnrs.push(inversion.psnr);
                bar.inc(1);
            }
            sheet.push(cells);
            let mean = psnrs.iter().sum::<f64>() / num as f64;
            rows.push(Row { steps, evaluations, mean, lowest: psnrs.iter().copied().fold(f64::INFINITY, f64::min) });
        }
    }
    bar.finish_and_clear();
    println!("| steps | evaluations per step | mean PSNR | lowest |\n|---|---|---|---|");
    for Row { steps, evaluations, mean, lowest } in &rows {
        println!("| {steps} | {evaluations} | {mean:.1} dB | {lowest:.1} dB |");
    }
    if let Some(json) = &args.json {
        write_json(json, &rows)?;
        println!("{}", json.display());
    }
    args.edit.save_sheet(&sheet, "reconstructions", &args.sheet)
}
