//! Measures a pipeline on training captions and on held-out compositions.
//!
//! One image is generated per caption. It is correct when the nearest rendering of the data set (mean squared distance
//! at 32 × 32 px on white) is the caption's own; top-10 accuracy counts the ten nearest.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use burn::prelude::Tensor;
use clap::Args;
use dalle2::base::image::{LabelledImage, RgbImage, contact_sheet, save_png, to_tensor};
use dalle2::base::metrics::similarity_matrix;
use dalle2::{GenerateRequest, Pipeline};
use dalle2_emoji::{EmojiStore, NearestIndex, Split, Subset};
use serde::Serialize;

use crate::args::{JsonArgs, ModelArgs, SamplingArgs};
use crate::outcome::check_usage;
use crate::progress::Items;

/// Measure a pipeline on the emoji
#[derive(Debug, Args)]
pub struct PipelineArgs {
    /// Maximum number of captions of each kind; one image per caption
    #[arg(long, value_name = "N", default_value_t = 200, alias = "num")]
    num_images: usize,
    /// Emoji the model was trained on: tiny, small or full
    #[arg(long, default_value_t = Subset::Small)]
    subset: Subset,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Runs the upsamplers too; without it the decoder's images are measured
    #[arg(long)]
    upsample: bool,
    #[command(flatten)]
    json: JsonArgs,
    /// PNG file of the images beside their nearest renderings
    #[arg(long, value_name = "FILE", default_value = "out/evaluation.png", help_heading = "Output", alias = "sheet")]
    out: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
}

/// Share of images whose nearest rendering is the correct one.
#[derive(Debug, Serialize)]
struct Accuracy {
    top1: f64,
    top10: f64,
    num: usize,
}

/// Mean cosine of images and captions in CLIP's space.
#[derive(Debug, Serialize)]
struct ClipScore {
    /// Each image with its own caption.
    matched: f64,
    /// Each image with every other caption.
    shuffled: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    seen: Accuracy,
    held_out: Accuracy,
    /// Accuracy of a random guess.
    chance: Accuracy,
    clip_score: ClipScore,
    seconds: f64,
}

/// A caption and the image generated for it.
struct Sample {
    emoji: usize,
    caption: String,
    image: RgbImage,
    nearest: usize,
    rank: usize,
}

pub fn run(cli: &PipelineArgs) -> Result<()> {
    let start = Instant::now();
    check_usage!(cli.num_images > 1, "--num-images {}: at least 2", cli.num_images);
    let pipeline = cli.model.load()?;
    let device = pipeline.device().clone();
    let image_encoder =
        pipeline.image_encoder().context("the CLIP similarity needs a pipeline with an image encoder")?;
    let store = EmojiStore::open(&[64], Path::new("data/emoji"))?;
    let index = NearestIndex::new(&store)?;

    let seen = generate(cli, &pipeline, &store, &index, &cli.subset.select(store.catalogue(), Split::Seen)?)?;
    let held_out = generate(cli, &pipeline, &store, &index, &cli.subset.select(store.catalogue(), Split::HeldOut)?)?;

    let images: Vec<RgbImage> = seen.iter().map(|d| d.image.clone()).collect();
    let captions: Vec<&str> = seen.iter().map(|d| d.caption.as_str()).collect();
    let mut embeddings = Vec::new();
    for chunk in images.chunks(32) {
        embeddings.push(image_encoder.encode(to_tensor(chunk, &device)?)?);
    }
    let text = pipeline.text_encoder().encode_truncated(&captions)?.0.pooled;
    let groups = index.groups().len() as f64;
    let report = Report {
        seen: accuracy(&seen),
        held_out: accuracy(&held_out),
        chance: Accuracy { top1: 1.0 / groups, top10: 10.0 / groups, num: index.groups().len() },
        clip_score: clip_score(Tensor::cat(embeddings, 0), text)?,
        seconds: start.elapsed().as_secs_f64(),
    };

    save_png(&sheet(&store, &[&seen, &held_out])?, &cli.out)?;
    println!("{:28} {:>7} {:>7}", "correct nearest rendering", "top-1", "top-10");
    let kinds = [("trained captions", &report.seen), ("held-out compositions", &report.held_out)];
    for (name, accuracy) in kinds {
        println!("{:28} {:7.3} {:7.3}", format!("{name} ({})", accuracy.num), accuracy.top1, accuracy.top10);
    }
    println!("{:28} {:7.4} {:7.4}", format!("chance (1 of {groups})"), report.chance.top1, report.chance.top10);
    println!("CLIP similarity: {:.3} matched, {:.3} shuffled", report.clip_score.matched, report.clip_score.shuffled);
    cli.json.write(&report)?;
    println!("{} ({:.0} s)", cli.out.display(), report.seconds);
    Ok(())
}

/// Generates one image for each of at most `--num-images` emoji, spread over `items`.
fn generate(
    cli: &PipelineArgs,
    pipeline: &Pipeline,
    store: &EmojiStore,
    index: &NearestIndex,
    items: &[usize],
) -> Result<Vec<Sample>> {
    let n = items.len().min(cli.num_images);
    let seed = cli.sampling.seed.unwrap_or(0);
    let progress = Items::new(n, "images");
    let samples = (0..n)
        .map(|i| {
            let emoji = items[i * items.len() / n];
            let caption = store.emoji(emoji)?.name.clone();
            let mut request = cli.sampling.apply(GenerateRequest::new(&caption)).seed(seed.wrapping_add(i as u64));
            if !cli.upsample {
                request = request.max_upsamplers(0);
            }
            let image = pipeline.generate(request)?.images.remove(0);
            let ranking = index.rank(&image)?;
            progress.add(1);
            let nearest = ranking.top(1).first().context("the data set is empty")?.emoji_index;
            Ok(Sample { rank: ranking.rank_of(index, emoji), nearest, emoji, caption, image })
        })
        .collect();
    drop(progress);
    samples
}

fn accuracy(samples: &[Sample]) -> Accuracy {
    let share = |k: usize| samples.iter().filter(|s| s.rank < k).count() as f64 / samples.len().max(1) as f64;
    Accuracy { top1: share(1), top10: share(10), num: samples.len() }
}

fn clip_score(images: Tensor<2>, text: Tensor<2>) -> Result<ClipScore> {
    let n = images.dims()[0];
    let cosines: Vec<f32> = similarity_matrix(images, text)?
        .into_data()
        .try_to_vec()
        .map_err(|e| anyhow::anyhow!("reading the similarities: {e}"))?;
    let all: f64 = cosines.iter().map(|&c| f64::from(c)).sum();
    let matched: f64 = (0..n).map(|i| f64::from(cosines[i * n + i])).sum();
    Ok(ClipScore { matched: matched / n as f64, shuffled: (all - matched) / (n * (n - 1)) as f64 })
}

/// Side of an image on the sheet, in pixels.
const CELL: u32 = 96;

/// Pairs of a generated image and the data set's rendering of its caption, at most 60 of each kind.
fn sheet(store: &EmojiStore, kinds: &[&Vec<Sample>]) -> Result<RgbImage> {
    let mut rows = Vec::new();
    for samples in kinds {
        let step = samples.len().div_ceil(60).max(1);
        let cells: Vec<LabelledImage> = samples
            .iter()
            .step_by(step)
            .map(|d| {
                let mark = if d.rank == 0 { "ok" } else { "no" };
                let label = if d.rank == 0 {
                    d.caption.clone()
                } else {
                    format!("{} -> {}", d.caption, store.emoji(d.nearest)?.name)
                };
                Ok([
                    LabelledImage::new(d.image.clone(), format!("[{mark}] {label}")),
                    LabelledImage::new(store.image(d.emoji, CELL)?, "data set"),
                ])
            })
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .flatten()
            .collect();
        rows.extend(cells.chunks(12).map(<[LabelledImage]>::to_vec));
    }
    Ok(contact_sheet(&rows, CELL))
}
