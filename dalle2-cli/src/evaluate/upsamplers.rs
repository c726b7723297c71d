//! Measures each upsampler of a pipeline against bicubic enlargement, on renderings it was not trained on.
//!
//! The small images are averages of true renderings at the large size. PSNR and SSIM compare pixels. CLIP would see nothing
//! of an enlargement in whole images, which it reads at 64 px, so the Fréchet distance is between the embeddings of patches
//! of 64 × 64 pixels, cut at the same places from the results and from the true renderings.
//!
//! ```text
//! cargo run --release --example evaluate_upsamplers -- --model models/emoji --num 64 --json out/upsamplers.json
//! ```
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use burn::prelude::Tensor;
use clap::Parser;
use dalle2::base::diffusion::SeededNoise;
use dalle2::base::image::{
    LabelledImage, contact_sheet, from_tensor, resize_area, resize_bicubic, save_png, to_tensor,
};
use dalle2::base::metrics::{cosine_similarity, frechet_distance, psnr, ssim};
use dalle2::base::nn::l2_normalize;
use dalle2::base::store::write_json;
use dalle2::base::{StepEvent, Tiling, Upsampler};
use dalle2::decoder::DiffusionUpsampler;
use dalle2::{Pipeline, UpsamplerOptions};
use dalle2_emoji::{EmojiStore, Split, Subset};
use indicatif::ProgressBar;
use serde::Serialize;

/// Measure the upsamplers of a pipeline.
#[derive(Debug, Parser)]
pub struct Cli {
    /// Pipeline directory
    #[arg(long, value_name = "DIR", default_value = "models/emoji")]
    model: PathBuf,
    /// A further upsampler behind the pipeline's own
    #[arg(long, value_name = "DIR")]
    upsampler: Option<PathBuf>,
    /// Renderings, spread over those that are not in the subset
    #[arg(long, value_name = "N", default_value_t = 64)]
    num: usize,
    /// Emoji the model was trained on: tiny, small or full
    #[arg(long, default_value_t = Subset::Small)]
    subset: Subset,
    /// Evaluates in tiles of so many pixels, with a quarter of overlap, and compares with the untiled result
    #[arg(long, value_name = "PIXELS")]
    tile: Option<usize>,
    /// Writes the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes some of the images as PNG
    #[arg(long, value_name = "FILE", default_value = "out/upsamplers.png")]
    sheet: PathBuf,
    /// Device: default, flex, cuda:0, wgpu, …
    #[arg(long, default_value = "default")]
    device: String,
}

/// Side of the patches that are embedded, in pixels of the large image.
const PATCH: usize = 64;
/// Patches of one image, those with the most contrast in the true rendering.
const PATCHES: usize = 16;

/// Figures of one way to enlarge.
#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Figures {
    /// Decibel, of the mean squared error over all images.
    psnr: f64,
    ssim: f64,
    /// Mean cosine of the embeddings of a result and of the true rendering.
    cosine: f64,
    /// Between the embeddings of patches, normalised.
    frechet: f64,
}

#[derive(Debug, Serialize)]
struct Row {
    from: usize,
    to: usize,
    num: usize,
    /// Patches in each of the Fréchet distances.
    patches: usize,
    bicubic: Figures,
    upsampler: Figures,
    /// The upsampler in tiles.
    tiled: Option<Figures>,
    /// PSNR of the tiled result against the untiled one.
    tiled_psnr: Option<f64>,
    seconds_per_image: f64,
}

/// Sums over images.
#[derive(Debug, Default)]
struct Sums {
    error: f64,
    ssim: f64,
    cosine: f64,
    num: usize,
    /// Normalised embeddings of patches, of the results and of the true renderings.
    patches: [Vec<Tensor<2>>; 2],
}

impl Sums {
    fn add(&mut self, pipeline: &Pipeline, found: &Tensor<4>, truth: &Tensor<4>) -> Result<()> {
        let encoder = pipeline.image_encoder().context("the pipeline has no image encoder")?;
        self.error += 4.0 / 10f64.powf(psnr(found.clone(), truth.clone())?[0] / 10.0);
        self.ssim += ssim(found.clone(), truth.clone())?[0];
        let (a, b) = (encoder.encode(found.clone())?, encoder.encode(truth.clone())?);
        self.cosine += f64::from(cosine_similarity(a, b)?.into_scalar::<f32>());
        self.num += 1;
        let places = places(truth);
        for (image, patches) in [found, truth].into_iter().zip(&mut self.patches) {
            patches.push(l2_normalize(encoder.encode(cut(image, &places))?));
        }
        Ok(())
    }

    fn num_patches(&self) -> usize {
        self.patches[0].iter().map(|patches| patches.dims()[0]).sum()
    }

    fn figures(self) -> Result<Figures> {
        let n = self.num as f64;
        let [found, truth] = self.patches.map(|patches| Tensor::cat(patches, 0));
        Ok(Figures {
            psnr: 10.0 * (4.0 * n / self.error).log10(),
            ssim: self.ssim / n,
            cosine: self.cosine / n,
            frechet: frechet_distance(found, truth)?,
        })
    }
}

/// Corners of the patches with the most contrast, of a grid over the true rendering `[1, 3, H, W]`.
fn places(truth: &Tensor<4>) -> Vec<[usize; 2]> {
    let [_, _, h, w] = truth.dims();
    let mut places = Vec::new();
    for y in (0..=h.saturating_sub(PATCH)).step_by(PATCH) {
        for x in (0..=w.saturating_sub(PATCH)).step_by(PATCH) {
            let patch = cut(truth, &[[y, x]]).reshape([3, PATCH * PATCH]);
            places.push((patch.var(1).sum().into_scalar::<f32>(), [y, x]));
        }
    }
    places.sort_by(|a, b| b.0.total_cmp(&a.0));
    places.truncate(PATCHES);
    places.into_iter().map(|(_, place)| place).collect()
}

/// Patches of an image `[1, 3, H, W]`, as `[N, 3, PATCH, PATCH]`.
fn cut(image: &Tensor<4>, places: &[[usize; 2]]) -> Tensor<4> {
    let patch = |[y, x]: &[usize; 2]| image.clone().slice_dim(2, *y..y + PATCH).slice_dim(3, *x..x + PATCH);
    Tensor::cat(places.iter().map(patch).collect(), 0)
}

pub fn run(cli: &Cli) -> Result<()> {
    if cli.num < 2 {
        bail!("--num {}: at least 2 renderings are needed", cli.num);
    }
    let device = dalle2::device(&cli.device)?;
    let mut pipeline = Pipeline::from_pretrained(&cli.model, &device)?;
    if let Some(dir) = &cli.upsampler {
        pipeline = pipeline.to_builder().upsampler(DiffusionUpsampler::load(dir, &device)?).build()?;
    }
    let store = EmojiStore::open(&[64], Path::new("data/emoji"))?;
    let items = held_out(&store, cli.subset, cli.num)?;

    let mut rows = Vec::new();
    let mut sheet = Vec::new();
    for upsampler in pipeline.upsamplers() {
        rows.push(measure(cli, &pipeline, upsampler, &store, &items, &mut sheet)?);
    }
    println!("{:>14} {:>10} {:>8} {:>8} {:>8} {:>8} {:>9}", "", "", "PSNR", "SSIM", "cosine", "Fréchet", "s/image");
    for row in &rows {
        let name = format!("{} -> {}", row.from, row.to);
        let line = |name: &str, kind: &str, f: &Figures, seconds: String| {
            let Figures { psnr, ssim, cosine, frechet } = f;
            println!("{name:>14} {kind:>10} {psnr:8.2} {ssim:8.4} {cosine:8.4} {frechet:8.4} {seconds:>9}");
        };
        line(&name, "bicubic", &row.bicubic, String::new());
        line("", "upsampler", &row.upsampler, format!("{:.2}", row.seconds_per_image));
        if let (Some(tiled), Some(psnr)) = (&row.tiled, row.tiled_psnr) {
            line("", "in tiles", tiled, String::new());
            println!("{:>25} {psnr:8.2} dB between the two", "");
        }
    }
    save_png(&contact_sheet(&sheet, 256), &cli.sheet)?;
    println!("{}", cli.sheet.display());
    if let Some(json) = &cli.json {
        write_json(json, &rows)?;
        println!("{}", json.display());
    }
    Ok(())
}

/// Emoji outside of the subset, spread over the catalogue.
fn held_out(store: &EmojiStore, subset: Subset, num: usize) -> Result<Vec<usize>> {
    let seen = subset.select(store.catalogue(), Split::Seen)?;
    let others: Vec<usize> = (0..store.catalogue().len()).filter(|i| !seen.contains(i)).collect();
    if others.is_empty() {
        bail!("the subset {subset} leaves no emoji to measure on");
    }
    let n = others.len().min(num);
    Ok((0..n).map(|i| others[i * others.len() / n]).collect())
}

fn measure(
    cli: &Cli,
    pipeline: &Pipeline,
    upsampler: &dyn Upsampler,
    store: &EmojiStore,
    items: &[usize],
    sheet: &mut Vec<Vec<LabelledImage>>,
) -> Result<Row> {
    let (from, factor) = (upsampler.input_size(), upsampler.factor());
    let size = from * factor;
    let [mut bicubic_sums, mut sums, mut tiled_sums] = [(); 3].map(|()| Sums::default());
    let mut tiled_error = 0.0;
    let mut seconds = 0.0;
    let bar = ProgressBar::new(items.len() as u64);
    for (i, &item) in items.iter().enumerate() {
        let truth = to_tensor(&[store.image(item, size as u32)?], pipeline.device())?;
        let low = resize_area(truth.clone(), factor);
        let bicubic = resize_bicubic(low.clone(), [size, size]).clamp(-1.0, 1.0);
        let draw = |tiling: Option<Tiling>| {
            let options = UpsamplerOptions { tiling, ..Default::default() };
            let mut noise = SeededNoise::new(&[i as u64], 3);
            let mut go_on = |_: StepEvent<'_>| Ok(());
            upsampler.sample(&low, None, &options, &mut noise, &mut go_on)
        };
        let start = Instant::now();
        let found = draw(None)?;
        pipeline.device().sync().map_err(|e| anyhow::anyhow!("{e:?}"))?;
        seconds += start.elapsed().as_secs_f64();
        bicubic_sums.add(pipeline, &bicubic, &truth)?;
        sums.add(pipeline, &found, &truth)?;
        if let Some(tile) = cli.tile {
            let tiled = draw(Some(Tiling { size: tile, overlap: tile / 4 }))?;
            tiled_error += 4.0 / 10f64.powf(psnr(tiled.clone(), found.clone())?[0] / 10.0);
            tiled_sums.add(pipeline, &tiled, &truth)?;
        }
        if i % items.len().div_ceil(4) == 0 {
            let image = |tensor: Tensor<4>, label: &str| -> Result<LabelledImage> {
                Ok(LabelledImage::new(from_tensor(tensor)?.remove(0), label))
            };
            let name = store.emoji(item)?.name.clone();
            sheet.push(vec![
                image(truth, &name)?,
                image(bicubic, &format!("bicubic {from} to {size}"))?,
                image(found, "upsampler")?,
            ]);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let n = items.len() as f64;
    Ok(Row {
        from,
        to: size,
        num: items.len(),
        patches: sums.num_patches(),
        bicubic: bicubic_sums.figures()?,
        upsampler: sums.figures()?,
        tiled: cli.tile.map(|_| tiled_sums.figures()).transpose()?,
        tiled_psnr: cli.tile.map(|_| 10.0 * (4.0 * n / tiled_error).log10()),
        seconds_per_image: seconds / n,
    })
}
