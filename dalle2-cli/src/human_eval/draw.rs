//! Draws the images of a study.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use dalle2::base::image::save_png;
use dalle2::{GenerateRequest, Pipeline};
use indicatif::ProgressBar;

use super::folder::{png, read_captions};

/// Distance between the seeds of two captions: more than the images of one.
const SEEDS_PER_CAPTION: u64 = 1 << 16;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Pipeline directory
    #[arg(long, value_name = "DIR", default_value = "models/emoji")]
    model: PathBuf,
    /// Text file with one caption per line
    #[arg(long, value_name = "FILE")]
    captions: PathBuf,
    /// Folder for the images; image k of line i becomes IIII-K.png, both counted from 0
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Images per caption; the diversity question shows 16
    #[arg(long, value_name = "N", default_value_t = 16)]
    num: usize,
    /// Image k of line i has the seed S + 65536·i + k
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Sampling steps of the decoder
    #[arg(long, value_name = "N")]
    decoder_steps: Option<usize>,
    /// Guidance scale of the decoder; 1 is none
    #[arg(long, value_name = "G")]
    guidance: Option<f64>,
    /// Uses at most N upsamplers; 0 gives the decoder's own images
    #[arg(long, value_name = "N")]
    max_upsamplers: Option<usize>,
    /// Draws only what is missing in the folder
    #[arg(long)]
    resume: bool,
    /// Device: default, flex, cuda:0, wgpu, …
    #[arg(long, default_value = "default")]
    device: String,
}

pub fn run(args: &Args) -> Result<()> {
    let captions = read_captions(&args.captions)?;
    ensure!((1..SEEDS_PER_CAPTION).contains(&(args.num as u64)), "--num {}: 1 to 65535 images per caption", args.num);
    let missing = missing(args, captions.len())?;
    let device = dalle2::device(&args.device)?;
    let pipeline = Pipeline::from_pretrained(&args.model, &device)?;
    let bar = ProgressBar::new(missing.iter().map(|(_, images)| images.len() as u64).sum());
    for (caption, images) in &missing {
        // Neighbours are drawn together; the seeds of a request follow one another.
        for run in images.chunk_by(|a, b| a + 1 == *b) {
            let first = args.seed.wrapping_add(*caption as u64 * SEEDS_PER_CAPTION + run[0] as u64);
            let generation = pipeline
                .generate(request(args, &captions[*caption], first, run.len()))
                .with_context(|| format!("line {} of {}", caption + 1, args.captions.display()))?;
            for (image, &number) in generation.images.iter().zip(run) {
                save_png(image, png(&args.out, *caption, number))?;
                bar.inc(1);
            }
        }
    }
    bar.finish_and_clear();
    println!("{} captions, {} images each: {}", captions.len(), args.num, args.out.display());
    Ok(())
}

/// For each caption the images that the folder lacks.
fn missing(args: &Args, captions: usize) -> Result<Vec<(usize, Vec<usize>)>> {
    let lacks = |caption: usize| (0..args.num).filter(|&k| !png(&args.out, caption, k).exists()).collect::<Vec<_>>();
    let missing: Vec<_> = (0..captions).map(|i| (i, lacks(i))).collect();
    let there = captions * args.num - missing.iter().map(|(_, images)| images.len()).sum::<usize>();
    ensure!(
        there == 0 || args.resume,
        "{} holds {there} of these images: --resume draws the others, another --out all",
        args.out.display()
    );
    Ok(missing)
}

fn request(args: &Args, caption: &str, seed: u64, num: usize) -> GenerateRequest {
    let mut request = GenerateRequest::new(caption).seed(seed).num_images(num);
    if let Some(steps) = args.decoder_steps {
        request = request.decoder_steps(steps);
    }
    if let Some(guidance) = args.guidance {
        request = request.guidance(guidance);
    }
    if let Some(upsamplers) = args.max_upsamplers {
        request = request.max_upsamplers(upsamplers);
    }
    request
}
