//! Generates the images of a study.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use dalle2::GenerateRequest;
use dalle2::base::image::save_png;

use super::folder::{png, read_captions};
use crate::args::{ModelArgs, SamplingArgs};
use crate::outcome::check_usage;
use crate::progress::Items;

/// Distance between the seeds of two captions; image k of line i has the seed S + 65536·i + k.
const SEEDS_PER_CAPTION: u64 = 1 << 16;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Text file with one caption per line
    #[arg(long, value_name = "FILE")]
    captions: PathBuf,
    /// Folder for the images; image k of line i is IIII-K.png, both counted from 0
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Images per caption; the diversity question shows 16
    #[arg(long, value_name = "N", default_value_t = 16, alias = "num")]
    num_images: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Runs at most N upsamplers; 0 gives the decoder's images
    #[arg(long, value_name = "N")]
    max_upsamplers: Option<usize>,
    /// Generates only the images that are missing in the folder
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    model: ModelArgs,
}

pub fn run(args: &Args) -> Result<()> {
    let captions = read_captions(&args.captions)?;
    check_usage!(
        (1..SEEDS_PER_CAPTION).contains(&(args.num_images as u64)),
        "--num-images {}: 1 to 65535",
        args.num_images
    );
    let missing = missing(args, captions.len())?;
    let pipeline = args.model.load()?;
    let seed = args.sampling.seed.unwrap_or(0);
    let progress = Items::new(missing.iter().map(|(_, images)| images.len()).sum(), "images");
    for (caption, images) in &missing {
        // Consecutive images share a request, since the seeds of a request are consecutive.
        for run in images.chunk_by(|a, b| a + 1 == *b) {
            let first = seed.wrapping_add(*caption as u64 * SEEDS_PER_CAPTION + run[0] as u64);
            let generation = pipeline
                .generate(request(args, &captions[*caption], first, run.len()))
                .with_context(|| format!("line {} of {}", caption + 1, args.captions.display()))?;
            for (image, &number) in generation.images.iter().zip(run) {
                save_png(image, png(&args.out, *caption, number))?;
                progress.add(1);
            }
        }
    }
    drop(progress);
    println!("{} captions, {} images each: {}", captions.len(), args.num_images, args.out.display());
    Ok(())
}

/// The missing images of each caption.
fn missing(args: &Args, captions: usize) -> Result<Vec<(usize, Vec<usize>)>> {
    let absent =
        |caption: usize| (0..args.num_images).filter(|&k| !png(&args.out, caption, k).exists()).collect::<Vec<_>>();
    let missing: Vec<_> = (0..captions).map(|i| (i, absent(i))).collect();
    let existing = captions * args.num_images - missing.iter().map(|(_, images)| images.len()).sum::<usize>();
    ensure!(
        existing == 0 || args.resume,
        "{} contains {existing} of these images: --resume generates the others, another --out all",
        args.out.display()
    );
    Ok(missing)
}

fn request(args: &Args, caption: &str, seed: u64, num_images: usize) -> GenerateRequest {
    let request = args.sampling.apply(GenerateRequest::new(caption)).seed(seed).num_images(num_images);
    match args.max_upsamplers {
        Some(upsamplers) => request.max_upsamplers(upsamplers),
        None => request,
    }
}
