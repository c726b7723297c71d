//! Inpainting and outpainting.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use dalle2::base::diffusion::Resampling;
use dalle2::base::image::LabelledImage;
use dalle2::{Borders, Canvas};

use super::common::{EditArgs, image, show_mask};
use super::mask::MaskArgs;
use crate::progress::Stages;

const EXAMPLES: &str = "Examples:
  dalle2 inpaint \"emoji:red heart\" --caption \"green heart\" --rect 64,0,64,128 --upsample
  dalle2 inpaint photo.png --mask mask.png --caption \"a hat\" --num-images 4
  dalle2 inpaint \"emoji:red apple\" --outpaint 32 --upsample";

/// Generate a part of an image anew, or extend the image
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[command(group = clap::ArgGroup::new("region").required(true).multiple(true))]
pub struct Cli {
    /// Image file, or emoji:NAME, which is rendered at 128 × 128 pixels
    image: String,
    #[command(flatten)]
    mask: MaskArgs,
    /// Extends the image by a border of this many pixels
    #[arg(long, value_name = "PIXELS", group = "region", conflicts_with_all = ["mask", "rect", "circle", "invert"])]
    outpaint: Option<u32>,
    /// Number of results
    #[arg(long, value_name = "N", default_value_t = 4, alias = "num")]
    num_images: usize,
    /// Resampling rounds (RePaint) of a decoder that was not trained to inpaint
    #[arg(long, value_name = "N", default_value_t = Resampling::default().rounds)]
    rounds: usize,
    /// Steps of a resampling jump
    #[arg(long, value_name = "N", default_value_t = Resampling::default().jump)]
    jump: usize,
    /// PNG file
    #[arg(long, value_name = "FILE", default_value = "out/inpaint.png", help_heading = "Output")]
    out: PathBuf,
    #[command(flatten)]
    edit: EditArgs,
}

pub fn run(cli: &Cli) -> Result<()> {
    let image = image(&cli.image)?;
    let resampling = Resampling { rounds: cli.rounds, jump: cli.jump };
    let seed = cli.edit.sampling.seed();
    let request = cli.edit.request(seed).num_images(cli.num_images);
    let (canvas, mask) = match cli.outpaint {
        Some(pixels) => {
            let Canvas { image, mask } = Canvas::extended(&image, Borders::all(pixels))?;
            (image, mask)
        }
        None => (image.clone(), cli.mask.mask(&image)?),
    };
    let pipeline = cli.edit.pipeline()?;
    let stages = Stages::new();
    let images = match cli.outpaint {
        Some(pixels) => {
            let outpaint = pipeline.outpaint(&image, Borders::all(pixels)).resampling(resampling);
            outpaint.request(request).controls(stages.controls()).run()?.images
        }
        None => {
            let inpaint = pipeline.inpaint(&image, &mask).resampling(resampling);
            inpaint.request(request).controls(stages.controls()).run()?.images
        }
    };
    drop(stages);
    let caption = if cli.edit.caption.is_empty() { "no caption" } else { &cli.edit.caption };
    let percent = 100.0 * mask.edited_share();
    let mut row = vec![
        LabelledImage::new(image, &cli.image),
        LabelledImage::new(show_mask(&canvas, &mask), format!("{percent:.0} % masked")),
    ];
    let label = |(i, image)| LabelledImage::new(image, format!("{caption}, seed {}", seed.wrapping_add(i as u64)));
    row.extend(images.into_iter().enumerate().map(label));
    cli.edit.save_sheet(&[row], &format!("{}, inpainted: {caption}", cli.image), seed, &cli.out)
}
