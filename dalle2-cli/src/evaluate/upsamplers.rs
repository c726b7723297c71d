//! Measures each upsampler of a pipeline against bicubic interpolation, on renderings outside its training set.
//!
//! The inputs are averages of true renderings at the large size. PSNR and SSIM compare pixels. CLIP reads images at
//! 64 px, where upsampling is invisible, so the Fréchet distance compares embeddings of 64 × 64 px patches, cut at the
//! same positions from the results and from the true renderings.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use burn::prelude::Tensor;
use clap::Args;
use dalle2::Pipeline;
use dalle2::base::diffusion::SeededNoise;
use dalle2::base::image::{
    LabelledImage, contact_sheet, from_tensor, resize_area, resize_bicubic, save_png, to_tensor,
};
use dalle2::base::metrics::{cosine_similarity, frechet_distance, psnr, ssim};
use dalle2::base::nn::l2_normalize;
use dalle2::base::{StepEvent, Tiling, Upsampler, UpsamplerOptions};
use dalle2::decoder::DiffusionUpsampler;
use dalle2_emoji::{EmojiStore, Split, Subset};
use serde::Serialize;

use crate::args::{JsonArgs, ModelArgs};
use crate::outcome::check_usage;
use crate::progress::Items;

/// Measure the upsamplers against bicubic interpolation
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct UpsamplerArgs {
    /// One more upsampler after the pipeline's
    #[arg(long, value_name = "DIR")]
    upsampler: Option<PathBuf>,
    /// Number of renderings, spread over those outside the subset
    #[arg(long, value_name = "N", default_value_t = 64, alias = "num")]
    num_images: usize,
    /// Emoji the model was trained on: tiny, small or full
    #[arg(long, default_value_t = Subset::Small)]
    subset: Subset,
    /// Side of tiles with a quarter of overlap; compares the result with the untiled one
    #[arg(long, value_name = "PIXELS")]
    tile: Option<usize>,
    #[command(flatten)]
    json: JsonArgs,
    /// PNG file of some of the images
    #[arg(long, value_name = "FILE", default_value = "out/upsamplers.png", help_heading = "Output", alias = "sheet")]
    out: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
}

const EXAMPLES: &str = "Examples:
  dalle2 evaluate upsamplers
  dalle2 evaluate upsamplers --upsampler models/emoji-1024/upsampler_2 --tile 128";

/// Side of the embedded patches, in pixels of the large image.
const PATCH: usize = 64;
/// Patches per image, those with the highest contrast in the true rendering.
const PATCHES: usize = 16;

/// Quality of one method of upsampling.
#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Quality {
    /// In decibel, from the mean squared error over all images.
    psnr: f64,
    ssim: f64,
    /// Mean cosine between the embeddings of results and true renderings.
    cosine: f64,
    /// Fréchet distance between the normalised embeddings of patches.
    frechet: f64,
}

#[derive(Debug, Serialize)]
struct Row {
    from: usize,
    to: usize,
    num: usize,
    /// Patches in each of the Fréchet distances.
    patches: usize,
    bicubic: Quality,
    upsampler: Quality,
    /// The upsampler in tiles.
    tiled: Option<Quality>,
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
    /// Normalised patch embeddings of the results and of the true renderings.
    patches: [Vec<Tensor<2>>; 2],
}

impl Sums {
    fn add(&mut self, pipeline: &Pipeline, image: &Tensor<4>, truth: &Tensor<4>) -> Result<()> {
        let encoder = pipeline.image_encoder().context("the pipeline lacks an image encoder")?;
        self.error += 4.0 / 10f64.powf(psnr(image.clone(), truth.clone())?[0] / 10.0);
        self.ssim += ssim(image.clone(), truth.clone())?[0];
        let (a, b) = (encoder.encode(image.clone())?, encoder.encode(truth.clone())?);
        self.cosine += f64::from(cosine_similarity(a, b)?.into_scalar::<f32>());
        self.num += 1;
        let places = places(truth);
        for (image, patches) in [image, truth].into_iter().zip(&mut self.patches) {
            patches.push(l2_normalize(encoder.encode(cut(image, &places))?));
        }
        Ok(())
    }

    fn num_patches(&self) -> usize {
        self.patches[0].iter().map(|patches| patches.dims()[0]).sum()
    }

    fn quality(self) -> Result<Quality> {
        let n = self.num as f64;
        let [results, truth] = self.patches.map(|patches| Tensor::cat(patches, 0));
        Ok(Quality {
            psnr: 10.0 * (4.0 * n / self.error).log10(),
            ssim: self.ssim / n,
            cosine: self.cosine / n,
            frechet: frechet_distance(results, truth)?,
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

pub fn run(cli: &UpsamplerArgs) -> Result<()> {
    check_usage!(cli.num_images > 1, "--num-images {}: at least 2", cli.num_images);
    let mut pipeline = cli.model.load()?;
    let device = pipeline.device().clone();
    if let Some(dir) = &cli.upsampler {
        pipeline = pipeline.to_builder().upsampler(DiffusionUpsampler::load(dir, &device)?).build()?;
    }
    let store = EmojiStore::open(&[64], Path::new("data/emoji"))?;
    let items = held_out(&store, cli.subset, cli.num_images)?;

    let mut rows = Vec::new();
    let mut sheet = Vec::new();
    for upsampler in pipeline.upsamplers() {
        rows.push(measure(cli, &pipeline, upsampler, &store, &items, &mut sheet)?);
    }
    println!("{:>14} {:>10} {:>8} {:>8} {:>8} {:>8} {:>9}", "", "", "PSNR", "SSIM", "cosine", "Fréchet", "s/image");
    for row in &rows {
        let name = format!("{} -> {}", row.from, row.to);
        let line = |name: &str, kind: &str, f: &Quality, seconds: String| {
            let Quality { psnr, ssim, cosine, frechet } = f;
            println!("{name:>14} {kind:>10} {psnr:8.2} {ssim:8.4} {cosine:8.4} {frechet:8.4} {seconds:>9}");
        };
        line(&name, "bicubic", &row.bicubic, String::new());
        line("", "upsampler", &row.upsampler, format!("{:.2}", row.seconds_per_image));
        if let (Some(tiled), Some(psnr)) = (&row.tiled, row.tiled_psnr) {
            line("", "tiled", tiled, String::new());
            println!("{:>25} {psnr:8.2} dB tiled against untiled", "");
        }
    }
    save_png(&contact_sheet(&sheet, 256), &cli.out)?;
    println!("{}", cli.out.display());
    cli.json.write(&rows)?;
    Ok(())
}

/// Emoji outside the subset, spread over the catalogue.
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
    cli: &UpsamplerArgs,
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
    let progress = Items::new(items.len(), "images");
    for (i, &item) in items.iter().enumerate() {
        let truth = to_tensor(&[store.image(item, size as u32)?], pipeline.device())?;
        let low = resize_area(truth.clone(), factor);
        let bicubic = resize_bicubic(low.clone(), [size, size]).clamp(-1.0, 1.0);
        let upsample = |tiling: Option<Tiling>| {
            let options = UpsamplerOptions { tiling, ..Default::default() };
            let mut noise = SeededNoise::new(&[i as u64], 3);
            let mut proceed = |_: StepEvent<'_>| Ok(());
            upsampler.sample(&low, None, &options, &mut noise, &mut proceed)
        };
        let start = Instant::now();
        let result = upsample(None)?;
        pipeline.device().sync().map_err(|e| anyhow::anyhow!("{e:?}"))?;
        seconds += start.elapsed().as_secs_f64();
        bicubic_sums.add(pipeline, &bicubic, &truth)?;
        sums.add(pipeline, &result, &truth)?;
        if let Some(tile) = cli.tile {
            let tiled = upsample(Some(Tiling { size: tile, overlap: tile / 4 }))?;
            tiled_error += 4.0 / 10f64.powf(psnr(tiled.clone(), result.clone())?[0] / 10.0);
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
                image(result, "upsampler")?,
            ]);
        }
        progress.add(1);
    }
    drop(progress);
    let n = items.len() as f64;
    Ok(Row {
        from,
        to: size,
        num: items.len(),
        patches: sums.num_patches(),
        bicubic: bicubic_sums.quality()?,
        upsampler: sums.quality()?,
        tiled: cli.tile.map(|_| tiled_sums.quality()).transpose()?,
        tiled_psnr: cli.tile.map(|_| 10.0 * (4.0 * n / tiled_error).log10()),
        seconds_per_image: seconds / n,
    })
}
