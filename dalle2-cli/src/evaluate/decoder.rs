//! Measures a decoder: image quality by sampler and steps, and the variances of its reverse process in bits per
//! dimension.
//!
//! Each image is generated from the embedding and the caption of a rendering and compared with that rendering, so the
//! results isolate the decoder.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use burn::prelude::{Device, Tensor};
use clap::{Args, ValueEnum};
use dalle2::Pipeline;
use dalle2::base::diffusion::{Sampler, SeededNoise, Spacing};
use dalle2::base::image::{from_tensor, resize_area, to_tensor};
use dalle2::base::metrics::psnr;
use dalle2::base::{Captions, Decoder, DiffusionOptions, StepEvent, TextCondition};
use dalle2::decoder::UnclipDecoder;
use dalle2_emoji::{EmojiStore, NearestIndex, Split, Subset};
use serde::Serialize;

use crate::args::{JsonArgs, ModelArgs};
use crate::outcome::check_usage;
use crate::progress::Items;

const EXAMPLES: &str = "Examples:
  dalle2 evaluate decoder samplers --num-images 48
  dalle2 evaluate decoder bits --num-images 64";

/// Images per batch.
const BATCH: usize = 16;

/// Measure the decoder: samplers and steps, or bits per dimension
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct DecoderArgs {
    /// Measurement
    #[arg(value_enum)]
    table: Table,
    /// Number of renderings, spread over the subset
    #[arg(long, value_name = "N", default_value_t = 48, alias = "num")]
    num_images: usize,
    /// Emoji the model was trained on: tiny, small or full
    #[arg(long, default_value_t = Subset::Small)]
    subset: Subset,
    /// Measures on compositions held out of the training
    #[arg(long)]
    held_out: bool,
    /// Guidance scale; the model's own if not given
    #[arg(long, value_name = "G")]
    guidance: Option<f64>,
    /// Timesteps of the bits per dimension, densest at the clean end
    #[arg(long, value_name = "N", default_value_t = 100)]
    timesteps: usize,
    #[command(flatten)]
    json: JsonArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// A measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Table {
    /// Samplers by steps: PSNR to the rendering, top-1 accuracy, milliseconds
    Samplers,
    /// Bits per dimension with the learned variance and with both fixed ones
    Bits,
}

/// Renderings with their conditions.
struct Data {
    items: Vec<usize>,
    images: Tensor<4>,
    embedding: Tensor<2>,
    text: TextCondition,
    null: TextCondition,
}

#[derive(Debug, Serialize)]
struct SamplerRow {
    sampler: String,
    steps: usize,
    psnr: f64,
    top1: f64,
    milliseconds_per_image: f64,
}

#[derive(Debug, Serialize)]
struct BitsRow {
    learned: f64,
    fixed_small: f64,
    fixed_large: f64,
    prior: f64,
    num: usize,
    timesteps: usize,
}

pub fn run(cli: &DecoderArgs) -> Result<()> {
    check_usage!(cli.num_images > 0, "--num-images 0: at least 1");
    let pipeline = cli.model.load()?;
    let device = pipeline.device().clone();
    let decoder = UnclipDecoder::load(cli.model.model.join("decoder"), &device)?;
    let store = EmojiStore::open(&[64], Path::new("data/emoji"))?;
    let split = if cli.held_out { Split::HeldOut } else { Split::Seen };
    let data = data(cli, &pipeline, &decoder, &store, &cli.subset.select(store.catalogue(), split)?)?;
    match cli.table {
        Table::Samplers => cli.json.write(&samplers(cli, &decoder, &store, &data, &device)?),
        Table::Bits => cli.json.write(&bits(cli, &decoder, &data)?),
    }
}

fn data(
    cli: &DecoderArgs,
    pipeline: &Pipeline,
    decoder: &UnclipDecoder,
    store: &EmojiStore,
    items: &[usize],
) -> Result<Data> {
    let n = items.len().min(cli.num_images);
    if n == 0 {
        bail!("the subset {} contains none of these renderings", cli.subset);
    }
    let items: Vec<usize> = (0..n).map(|i| items[i * items.len() / n]).collect();
    let encoder = pipeline.image_encoder().context("the pipeline lacks an image encoder")?;
    let size = decoder.config().image_size;
    let factor = 64usize.div_ceil(size);
    let mut images = Vec::new();
    let mut captions = Vec::new();
    for &item in &items {
        images.push(store.image(item, (size * factor) as u32)?);
        captions.push(store.emoji(item)?.name.as_str());
    }
    let large = to_tensor(&images, pipeline.device())?;
    let text = pipeline.text_encoder();
    Ok(Data {
        items,
        embedding: encoder.encode(large.clone())?,
        images: resize_area(large, factor),
        text: text.encode_truncated(&captions)?.0,
        null: text.encode(&[""])?,
    })
}

impl Data {
    fn len(&self) -> usize {
        self.items.len()
    }

    /// Rows from..to of images, embeddings and captions.
    fn part(&self, from: usize, to: usize) -> (Tensor<4>, Tensor<2>, TextCondition) {
        let text = TextCondition {
            pooled: self.text.pooled.clone().slice_dim(0, from..to),
            tokens: self.text.tokens.clone().slice_dim(0, from..to),
            mask: self.text.mask.rows(from..to),
        };
        (self.images.clone().slice_dim(0, from..to), self.embedding.clone().slice_dim(0, from..to), text)
    }
}

fn samplers(
    cli: &DecoderArgs,
    decoder: &UnclipDecoder,
    store: &EmojiStore,
    data: &Data,
    device: &Device,
) -> Result<Vec<SamplerRow>> {
    let index = NearestIndex::new(store)?;
    let even = |sampler: Sampler, name: &'static str| (name, sampler, Spacing::Even);
    let samplers = [
        even(Sampler::Ddpm, "DDPM, learned variance"),
        even(Sampler::Ddim { eta: 0.0 }, "DDIM"),
        even(Sampler::DpmSolver2m, "DPM-Solver++ 2M"),
        ("DPM-Solver++ 2M, even in log SNR", Sampler::DpmSolver2m, Spacing::LogSnr),
        even(Sampler::DpmSolver2s, "DPM-Solver++ 2S"),
    ];
    let mut rows = Vec::new();
    println!("{:34} {:>6} {:>8} {:>7} {:>9}", "", "steps", "PSNR", "top-1", "ms/image");
    let progress = Items::new(samplers.len() * 5 * data.len(), "images");
    for (name, sampler, spacing) in samplers {
        for steps in [5, 10, 20, 30, 50] {
            let options = DiffusionOptions {
                steps: Some(steps),
                guidance: cli.guidance,
                sampler: Some(sampler),
                spacing: Some(spacing.clone()),
                ..Default::default()
            };
            let (mut error, mut correct) = (0.0, 0);
            let start = Instant::now();
            let mut batches = Vec::new();
            for from in (0..data.len()).step_by(BATCH) {
                let to = (from + BATCH).min(data.len());
                let (images, embedding, text) = data.part(from, to);
                let seeds: Vec<u64> = (from as u64..to as u64).collect();
                let mut noise = SeededNoise::new(&seeds, 2);
                let captions = Captions { text: &text, null: &data.null };
                let mut proceed = |_: StepEvent<'_>| Ok(());
                let generated = decoder.sample(&embedding, captions, None, &options, &mut noise, &mut proceed)?;
                batches.push((generated, images));
                progress.add(to - from);
            }
            device.sync().map_err(|e| anyhow::anyhow!("{e:?}"))?;
            let seconds = start.elapsed().as_secs_f64();
            let mut position = 0;
            for (generated, images) in batches {
                error += psnr(generated.clone(), images)?.iter().map(|psnr| 4.0 / 10f64.powf(psnr / 10.0)).sum::<f64>();
                for image in from_tensor(generated)? {
                    correct += usize::from(index.rank(&image)?.rank_of(&index, data.items[position]) == 0);
                    position += 1;
                }
            }
            let n = data.len() as f64;
            let row = SamplerRow {
                sampler: name.to_owned(),
                steps,
                psnr: 10.0 * (4.0 * n / error).log10(),
                top1: correct as f64 / n,
                milliseconds_per_image: seconds * 1000.0 / n,
            };
            progress.suspend(|| {
                let SamplerRow { psnr, top1, milliseconds_per_image, .. } = &row;
                println!("{name:34} {steps:6} {psnr:8.2} {top1:7.3} {milliseconds_per_image:9.0}");
            });
            rows.push(row);
        }
    }
    drop(progress);
    Ok(rows)
}

fn bits(cli: &DecoderArgs, decoder: &UnclipDecoder, data: &Data) -> Result<BitsRow> {
    let total = decoder.config().diffusion.train_steps;
    // Densest at the clean end, where the terms change fastest: squares, without repetitions.
    let n = cli.timesteps.clamp(2, total);
    let share = |i: usize| i as f64 / (n - 1) as f64;
    let mut timesteps: Vec<usize> = (0..n).map(|i| (share(i).powi(2) * (total - 1) as f64).round() as usize).collect();
    timesteps.dedup();
    let n = timesteps.len();
    let mut row =
        BitsRow { learned: 0.0, fixed_small: 0.0, fixed_large: 0.0, prior: 0.0, num: data.len(), timesteps: n };
    for from in (0..data.len()).step_by(BATCH) {
        let to = (from + BATCH).min(data.len());
        let (images, embedding, text) = data.part(from, to);
        let seeds: Vec<u64> = (from as u64..to as u64).collect();
        let mut noise = SeededNoise::new(&seeds, 5);
        let bits = decoder.bits_per_dimension(images, embedding, &text, &timesteps, &mut noise)?;
        let share = (to - from) as f64 / data.len() as f64;
        row.learned += share * bits.learned;
        row.fixed_small += share * bits.fixed_small;
        row.fixed_large += share * bits.fixed_large;
        row.prior += share * bits.prior;
    }
    println!("bits per dimension, {} images, {} timesteps", row.num, row.timesteps);
    println!("{:24} {:8.4}", "learned variance", row.learned);
    println!("{:24} {:8.4}", "fixed small (β̃)", row.fixed_small);
    println!("{:24} {:8.4}", "fixed large (β)", row.fixed_large);
    Ok(row)
}
