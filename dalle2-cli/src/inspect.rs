//! Looks through a data set: how many items, how large the images are, how long the captions, what occurs twice, and every
//! problem by name.
//!
//! ```text
//! cargo run --release --example inspect_dataset -- my-data --sheet out/sheet.png
//! cargo run --release --example inspect_dataset -- "shards/{000..099}.tar" --first 5000 --json out/data.json
//! ```
//!
//! Every image is decoded, so this takes a minute for some ten thousand; `--first` looks at fewer.
use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Parser;
use dalle2::base::image::{LabelledImage, contact_sheet, fit_square, save_png};
use dalle2::base::store::write_json;
use dalle2::base::text::ClipTokenizer;
use dalle2_train::data::{DataSpec, Decoders, Mixture, Problem};
use indicatif::ProgressBar;
use serde::Serialize;

/// Items that are decoded before the next ones are begun.
const CHUNK: usize = 256;
/// Images in a row of the contact sheet, and their side.
const COLUMNS: usize = 10;
const CELL: u32 = 96;

/// Look through a data set.
#[derive(Debug, Parser)]
pub struct Cli {
    /// A folder, an index (.jsonl, .csv, .tsv, .parquet) or shards; several are looked through one after the other
    #[arg(required = true)]
    data: Vec<String>,
    /// Looks at so many items only, spread over the set
    #[arg(long, value_name = "N")]
    first: Option<usize>,
    /// Tokens that a caption may have, start and end included
    #[arg(long, value_name = "N", default_value_t = 77)]
    context: usize,
    /// Side that training will resize images to, to count those that are smaller
    #[arg(long, value_name = "PIXELS", default_value_t = 64)]
    size: u32,
    /// Threads that decode; as many as there are cores if not given
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Writes a contact sheet
    #[arg(long, value_name = "FILE")]
    sheet: Option<PathBuf>,
    /// Images on the contact sheet
    #[arg(long, value_name = "N", default_value_t = 50)]
    num: usize,
    /// Writes everything as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Problems that are printed; the JSON has all
    #[arg(long, value_name = "N", default_value_t = 20)]
    problems: usize,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Report {
    /// Items with an image and a caption, before any image was decoded.
    items: usize,
    /// Items that were decoded or tried.
    looked_at: usize,
    /// Items of each source.
    sources: Vec<(String, usize)>,
    width: Spread,
    height: Spread,
    /// Longer side by shorter side.
    aspect_ratio: Spread,
    /// Images with a side shorter than `--size`.
    small: usize,
    caption_chars: Spread,
    caption_tokens: Spread,
    /// Captions with more tokens than `--context`, which are cut.
    too_long: usize,
    /// Captions that occur more than once, most frequent first, at most ten.
    frequent_captions: Vec<(String, usize)>,
    /// Items beyond the first of an equal caption.
    equal_captions: usize,
    /// Groups of items whose pixels are equal.
    equal_images: Vec<Vec<usize>>,
    images_per_second: f64,
    problems: Vec<Problem>,
}

/// How values are spread.
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

/// What is kept of an item that was decoded.
struct Seen {
    item: usize,
    size: (u32, u32),
    pixels: u64,
    caption: String,
    tokens: usize,
    thumbnail: Option<LabelledImage>,
}

pub fn run(cli: &Cli) -> Result<()> {
    ensure!(cli.num > 0, "--num 0: at least one image");
    let specs: Vec<DataSpec> = cli.data.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
    let mixture = Mixture::open(0, &specs)?;
    let (seen, seconds) = look(cli, &mixture)?;
    let report = report(cli, &specs, &mixture, &seen, seconds);
    print(cli, &report);
    if let Some(path) = &cli.sheet {
        let cells: Vec<LabelledImage> = seen.into_iter().filter_map(|seen| seen.thumbnail).collect();
        let rows: Vec<Vec<LabelledImage>> = cells.chunks(COLUMNS).map(<[_]>::to_vec).collect();
        save_png(&contact_sheet(&rows, CELL), path)?;
        println!("contact sheet: {}", path.display());
    }
    if let Some(path) = &cli.json {
        write_json(path, &report)?;
        println!("everything: {}", path.display());
    }
    Ok(())
}

/// Decodes the items; broken ones are noted by their sets.
fn look(cli: &Cli, mixture: &Mixture) -> Result<(Vec<Seen>, f64)> {
    let len = mixture.len();
    let count = cli.first.unwrap_or(len).min(len);
    let shown = cli.num.min(count);
    let tokenizer = ClipTokenizer::openai()?;
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let decoders = Decoders::new(cli.workers.unwrap_or_else(cores))?;
    let sets: Vec<_> = mixture.sets().map(|(set, _)| set).collect();
    let look = |at: usize| {
        let number = at * len / count;
        let item = mixture.nth(number);
        let found = sets[item.set].exact(item.index).ok()?;
        let mut hasher = DefaultHasher::new();
        (found.image.dimensions(), found.image.as_raw()).hash(&mut hasher);
        // Spread over all: the places where the whole part of the number on the sheet goes up.
        let on_sheet = cli.sheet.is_some() && at * shown / count != (at + 1) * shown / count;
        let thumbnail = || LabelledImage::new(fit_square(&found.image, CELL), found.caption.clone());
        Some(Seen {
            item: number,
            size: found.image.dimensions(),
            pixels: hasher.finish(),
            // Start and end count too.
            tokens: tokenizer.encode(&found.caption).map_or(0, |tokens| tokens.len() + 2),
            thumbnail: on_sheet.then(thumbnail),
            caption: found.caption,
        })
    };
    let bar = ProgressBar::new(count as u64);
    let (start, mut seen) = (Instant::now(), Vec::with_capacity(count));
    for from in (0..count).step_by(CHUNK) {
        let to = (from + CHUNK).min(count);
        seen.extend(decoders.map(from..to, look).into_iter().flatten());
        bar.set_position(to as u64);
    }
    bar.finish_and_clear();
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
        looked_at: cli.first.unwrap_or(mixture.len()).min(mixture.len()),
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
    println!("{} items looked at, {:.0} images per second", report.looked_at, report.images_per_second);
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
    println!("items with a caption that another has: {}", report.equal_captions);
    for (caption, count) in report.frequent_captions.iter().take(3) {
        println!("  {count} × {caption}");
    }
    let copies: usize = report.equal_images.iter().map(|group| group.len() - 1).sum();
    println!("images that are copies of another: {copies}");
    println!("problems: {}", report.problems.len());
    for Problem { item, reason } in report.problems.iter().take(cli.problems) {
        println!("  {item}: {reason}");
    }
    if report.problems.len() > cli.problems {
        println!("  … and {} more (--problems, --json)", report.problems.len() - cli.problems);
    }
}
