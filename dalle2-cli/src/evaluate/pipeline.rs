//! Measures what a pipeline draws for captions it was trained on and for held-out compositions.
//!
//! For each caption one image is drawn; it counts as right when the nearest of all renderings of the data set (mean
//! squared distance at 32 × 32 px on white) is the caption's own, or one of the ten nearest.
//!
//! ```text
//! cargo run --release --example evaluate -- --model models/emoji --num 200 --json out/eval.json
//! ```
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use burn::prelude::Tensor;
use clap::Parser;
use dalle2::base::image::{LabelledImage, RgbImage, contact_sheet, save_png, to_tensor};
use dalle2::base::metrics::similarity_matrix;
use dalle2::base::store::write_json;
use dalle2::{GenerateRequest, Pipeline};
use dalle2_emoji::{EmojiStore, NearestIndex, Split, Subset};
use indicatif::ProgressBar;
use serde::Serialize;

/// Measure a pipeline on the emoji.
#[derive(Debug, Parser)]
pub struct Cli {
    /// Pipeline directory
    #[arg(long, value_name = "DIR", default_value = "models/emoji")]
    model: PathBuf,
    /// Captions of each kind, at most
    #[arg(long, value_name = "N", default_value_t = 200)]
    num: usize,
    /// Emoji the model was trained on: tiny, small or full
    #[arg(long, default_value_t = Subset::Small)]
    subset: Subset,
    /// Seed of the first image
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Enlarges the images too; without it the decoder's images are measured
    #[arg(long)]
    upsample: bool,
    /// Writes the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes the images with their nearest renderings as PNG
    #[arg(long, value_name = "FILE", default_value = "out/evaluation.png")]
    sheet: PathBuf,
    /// Device: default, flex, cuda:0, wgpu, …
    #[arg(long, default_value = "default")]
    device: String,
}

/// How often the nearest rendering is the right one.
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
    /// What guessing at random reaches.
    chance: Accuracy,
    clip_score: ClipScore,
    seconds: f64,
}

/// A caption and what was drawn for it.
struct Drawn {
    emoji: usize,
    caption: String,
    image: RgbImage,
    nearest: usize,
    rank: usize,
}

pub fn run(cli: &Cli) -> Result<()> {
    let start = Instant::now();
    if cli.num < 2 {
        bail!("--num {}: at least 2 captions are needed", cli.num);
    }
    let device = dalle2::device(&cli.device)?;
    let pipeline = Pipeline::from_pretrained(&cli.model, &device)?;
    let image_encoder =
        pipeline.image_encoder().context("the CLIP similarity needs a pipeline with an image encoder")?;
    let store = EmojiStore::open(&[64], Path::new("data/emoji"))?;
    let index = NearestIndex::new(&store)?;

    let seen = draw(cli, &pipeline, &store, &index, &cli.subset.select(store.catalogue(), Split::Seen)?)?;
    let held_out = draw(cli, &pipeline, &store, &index, &cli.subset.select(store.catalogue(), Split::HeldOut)?)?;

    let images: Vec<RgbImage> = seen.iter().map(|d| d.image.clone()).collect();
    let captions: Vec<&str> = seen.iter().map(|d| d.caption.as_str()).collect();
    let mut embeddings = Vec::new();
    for chunk in images.chunks(32) {
        embeddings.push(image_encoder.encode(to_tensor(chunk, &device)?)?);
    }
    let text = pipeline.text_encoder().encode(&captions)?.pooled;
    let groups = index.groups().len() as f64;
    let report = Report {
        seen: accuracy(&seen),
        held_out: accuracy(&held_out),
        chance: Accuracy { top1: 1.0 / groups, top10: 10.0 / groups, num: index.groups().len() },
        clip_score: clip_score(Tensor::cat(embeddings, 0), text)?,
        seconds: start.elapsed().as_secs_f64(),
    };

    save_png(&sheet(&store, &[&seen, &held_out])?, &cli.sheet)?;
    println!("{:28} {:>7} {:>7}", "nearest rendering is right", "top-1", "top-10");
    let kinds = [("trained captions", &report.seen), ("held-out compositions", &report.held_out)];
    for (name, accuracy) in kinds {
        println!("{:28} {:7.3} {:7.3}", format!("{name} ({})", accuracy.num), accuracy.top1, accuracy.top10);
    }
    println!("{:28} {:7.4} {:7.4}", format!("chance (1 of {groups})"), report.chance.top1, report.chance.top10);
    println!("CLIP similarity: {:.3} matched, {:.3} shuffled", report.clip_score.matched, report.clip_score.shuffled);
    if let Some(json) = &cli.json {
        write_json(json, &report)?;
        println!("{}", json.display());
    }
    println!("{} ({:.0} s)", cli.sheet.display(), report.seconds);
    Ok(())
}

/// Draws one image for each of at most `--num` emoji, spread over `items`.
fn draw(
    cli: &Cli,
    pipeline: &Pipeline,
    store: &EmojiStore,
    index: &NearestIndex,
    items: &[usize],
) -> Result<Vec<Drawn>> {
    let n = items.len().min(cli.num);
    let bar = ProgressBar::new(n as u64);
    let drawn = (0..n)
        .map(|i| {
            let emoji = items[i * items.len() / n];
            let caption = store.emoji(emoji)?.name.clone();
            let mut request = GenerateRequest::new(&caption).seed(cli.seed + i as u64);
            if !cli.upsample {
                request = request.max_upsamplers(0);
            }
            let image = pipeline.generate(request)?.images.remove(0);
            let ranking = index.rank(&image)?;
            bar.inc(1);
            let nearest = ranking.top(1).first().context("the data set is empty")?.emoji_index;
            Ok(Drawn { rank: ranking.rank_of(index, emoji), nearest, emoji, caption, image })
        })
        .collect();
    bar.finish_and_clear();
    drawn
}

fn accuracy(drawn: &[Drawn]) -> Accuracy {
    let share = |k: usize| drawn.iter().filter(|d| d.rank < k).count() as f64 / drawn.len().max(1) as f64;
    Accuracy { top1: share(1), top10: share(10), num: drawn.len() }
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

/// Side of a picture on the sheet, in pixels.
const CELL: u32 = 96;

/// Pairs of a drawn image and the data set's rendering of its caption, at most 60 of each kind.
fn sheet(store: &EmojiStore, kinds: &[&Vec<Drawn>]) -> Result<RgbImage> {
    let mut rows = Vec::new();
    for drawn in kinds {
        let step = drawn.len().div_ceil(60).max(1);
        let cells: Vec<LabelledImage> = drawn
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
                    LabelledImage::new(store.image(d.emoji, CELL)?, "the data set's"),
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
