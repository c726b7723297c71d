//! Inspects a data set: number of items, sizes of images, lengths of captions, duplicates, and every problem by name.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use dalle2::base::image::{LabelledImage, contact_sheet, fit_square, save_png};
use dalle2::base::text::ClipTokenizer;
use dalle2_train::data::{DataSpec, Decoders, Mixture, Problem};
use serde::Serialize;

use crate::args::JsonArgs;
use crate::outcome::check_usage;
use crate::progress::Items;

/// Items decoded per round.
const CHUNK: usize = 256;
/// Images per row of the contact sheet.
const COLUMNS: usize = 10;
/// Side of an image on the sheet, in pixels.
const CELL: u32 = 96;

const EXAMPLES: &str = "Examples:
  dalle2 inspect my-data --sheet out/sheet.png
  dalle2 inspect \"shards/{000..099}.tar\" --first 5000 --json out/data.json

Every image is decoded: about a minute for ten thousand images; --first inspects fewer.";

/// Inspect a data set: sizes, captions, duplicates and problems
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Cli {
    /// A folder, an index (.jsonl, .csv, .tsv, .parquet) or shards; repeatable
    #[arg(required = true)]
    data: Vec<String>,
    /// Inspects N items only, spread over the set
    #[arg(long, value_name = "N")]
    first: Option<usize>,
    /// Maximum number of tokens per caption, start and end included
    #[arg(long, value_name = "N", default_value_t = 77)]
    context: usize,
    /// Side of the training images, to count smaller ones
    #[arg(long, value_name = "PIXELS", default_value_t = 64)]
    size: u32,
    /// Threads that decode; one per core if not given
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// PNG file of a contact sheet
    #[arg(long, value_name = "FILE")]
    sheet: Option<PathBuf>,
    /// Number of images on the contact sheet
    #[arg(long, value_name = "N", default_value_t = 50, alias = "num")]
    num_images: usize,
    #[command(flatten)]
    json: JsonArgs,
    /// Maximum number of printed problems; the JSON contains all
    #[arg(long, value_name = "N", default_value_t = 20)]
    problems: usize,
}

/// The results.
#[derive(Debug, Serialize)]
struct Report {
    /// Items with an image and a caption, before decoding.
    items: usize,
    /// Items that were inspected.
    #[serde(rename = "looked_at")]
    inspected: usize,
    /// Items of each source.
    sources: Vec<(String, usize)>,
    width: Spread,
    height: Spread,
    /// Longer side divided by shorter side.
    aspect_ratio: Spread,
    /// Images with a side shorter than `--size`.
    small: usize,
    caption_chars: Spread,
    caption_tokens: Spread,
    /// Captions with more tokens than `--context`, which are truncated.
    too_long: usize,
    /// The ten most frequent captions that occur more than once.
    frequent_captions: Vec<(String, usize)>,
    /// Items with the caption of an earlier item.
    equal_captions: usize,
    /// Groups of items with equal pixels.
    equal_images: Vec<Vec<usize>>,
    images_per_second: f64,
    problems: Vec<Problem>,
}

/// Statistics of a value.
#[derive(Debug, Default, Serialize)]
struct Spread {
    min: f64,
    median: f64,
    p95: f64,
    max: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.collect();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| sorted.get(((sorted.len().saturating_sub(1)) as f64 * share).round() as usize).copied();
        let at = |share| at(share).unwrap_or_default();
        Self { min: at(0.0), median: at(0.5), p95: at(0.95), max: at(1.0) }
    }
}

/// The record of a decoded item.
struct Seen {
    item: usize,
    size: (u32, u32),
    pixels: u64,
    caption: String,
    tokens: usize,
    thumbnail: Option<LabelledImage>,
}

pub fn run(cli: &Cli) -> Result<()> {
    check_usage!(cli.num_images > 0, "--num-images 0: at least 1");
    let specs: Vec<DataSpec> = cli.data.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
    let mixture = Mixture::open(0, &specs)?;
    let (seen, seconds) = decode(cli, &mixture)?;
    let report = report(cli, &specs, &mixture, &seen, seconds);
    print(cli, &report);
    if let Some(path) = &cli.sheet {
        let cells: Vec<LabelledImage> = seen.into_iter().filter_map(|seen| seen.thumbnail).collect();
        let rows: Vec<Vec<LabelledImage>> = cells.chunks(COLUMNS).map(<[_]>::to_vec).collect();
        save_png(&contact_sheet(&rows, CELL), path)?;
        println!("contact sheet: {}", path.display());
    }
    cli.json.write(&report)?;
    Ok(())
}

/// Decodes the items; the data sets record broken ones.
fn decode(cli: &Cli, mixture: &Mixture) -> Result<(Vec<Seen>, f64)> {
    let len = mixture.len();
    let count = cli.first.unwrap_or(len).min(len);
    let shown = cli.num_images.min(count);
    let tokenizer = ClipTokenizer::openai()?;
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let decoders = Decoders::new(cli.workers.unwrap_or_else(cores))?;
    let sets: Vec<_> = mixture.sets().map(|(set, _)| set).collect();
    let decode = |at: usize| {
        let number = at * len / count;
        let item = mixture.nth(number);
        let sample = sets[item.set].exact(item.index).ok()?;
        let mut hasher = DefaultHasher::new();
        (sample.image.dimensions(), sample.image.as_raw()).hash(&mut hasher);
        // Spreads the sheet over all items.
        let on_sheet = cli.sheet.is_some() && at * shown / count != (at + 1) * shown / count;
        let thumbnail = || LabelledImage::new(fit_square(&sample.image, CELL), sample.caption.clone());
        Some(Seen {
            item: number,
            size: sample.image.dimensions(),
            pixels: hasher.finish(),
            // Start and end count too.
            tokens: tokenizer.encode(&sample.caption).map_or(0, |tokens| tokens.len() + 2),
            thumbnail: on_sheet.then(thumbnail),
            caption: sample.caption,
        })
    };
    let progress = Items::new(count, "images");
    let (start, mut seen) = (Instant::now(), Vec::with_capacity(count));
    for from in (0..count).step_by(CHUNK) {
        let to = (from + CHUNK).min(count);
        seen.extend(decoders.map(from..to, decode).into_iter().flatten());
        progress.add(to - from);
    }
    drop(progress);
    Ok((seen, start.elapsed().as_secs_f64()))
}

fn report(cli: &Cli, specs: &[DataSpec], mixture: &Mixture, seen: &[Seen], seconds: f64) -> Report {
    let mut captions: HashMap<&str, usize> = HashMap::new();
    let mut pixels: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for Seen { item, pixels: hash, caption, .. } in seen {
        *captions.entry(caption).or_default() += 1;
        pixels.entry(*hash).or_default().push(*item);
    }
    let mut frequent: Vec<(String, usize)> =
        captions.iter().filter(|(_, count)| **count > 1).map(|(text, count)| (text.to_string(), *count)).collect();
    frequent.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    frequent.truncate(10);
    let sizes = || seen.iter().map(|seen| (f64::from(seen.size.0), f64::from(seen.size.1)));
    Report {
        items: mixture.len(),
        inspected: cli.first.unwrap_or(mixture.len()).min(mixture.len()),
        sources: specs.iter().map(|spec| spec.path.clone()).zip(mixture.sets().map(|(set, _)| set.len())).collect(),
        width: Spread::of(sizes().map(|(width, _)| width)),
        height: Spread::of(sizes().map(|(_, height)| height)),
        aspect_ratio: Spread::of(sizes().map(|(width, height)| width.max(height) / width.min(height))),
        small: seen.iter().filter(|seen| seen.size.0.min(seen.size.1) < cli.size).count(),
        caption_chars: Spread::of(seen.iter().map(|seen| seen.caption.chars().count() as f64)),
        caption_tokens: Spread::of(seen.iter().map(|seen| seen.tokens as f64)),
        too_long: seen.iter().filter(|seen| seen.tokens > cli.context).count(),
        equal_captions: seen.len() - captions.len(),
        frequent_captions: frequent,
        equal_images: pixels.into_values().filter(|items| items.len() > 1).collect(),
        images_per_second: seen.len() as f64 / seconds.max(1e-9),
        problems: mixture.problems(),
    }
}

fn print(cli: &Cli, report: &Report) {
    for (source, items) in &report.sources {
        println!("{source}: {items} items");
    }
    println!("{} items inspected, {:.0} images per second", report.inspected, report.images_per_second);
    println!("{:16} {:>8} {:>8} {:>8} {:>8}", "", "min", "median", "95 %", "max");
    let line = |name: &str, s: &Spread, digits: usize| {
        println!("{name:16} {:8.digits$} {:8.digits$} {:8.digits$} {:8.digits$}", s.min, s.median, s.p95, s.max);
    };
    line("width", &report.width, 0);
    line("height", &report.height, 0);
    line("aspect ratio", &report.aspect_ratio, 2);
    line("caption chars", &report.caption_chars, 0);
    line("caption tokens", &report.caption_tokens, 0);
    println!("images with a side below {} px: {}", cli.size, report.small);
    println!("captions of more than {} tokens: {}", cli.context, report.too_long);
    println!("items with the caption of an earlier item: {}", report.equal_captions);
    for (caption, count) in report.frequent_captions.iter().take(3) {
        println!("  {count} × {caption}");
    }
    let copies: usize = report.equal_images.iter().map(|group| group.len() - 1).sum();
    println!("duplicate images: {copies}");
    println!("problems: {}", report.problems.len());
    for Problem { item, reason } in report.problems.iter().take(cli.problems) {
        println!("  {item}: {reason}");
    }
    if report.problems.len() > cli.problems {
        println!("  … and {} more (--problems, --json)", report.problems.len() - cli.problems);
    }
}
