//! Draws images for a caption.
//!
//! ```text
//! cargo run --release --example generate -- "red apple"
//! ```
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use dalle2::base::Tiling;
use dalle2::base::image::{self, Provenance, save_png_with};
use dalle2::decoder::DiffusionUpsampler;
use dalle2::{FloatType, GenerateRequest, Hub, LoadOptions, Pipeline, Residency, UpsamplerOptions};
use indicatif::{ProgressBar, ProgressStyle};

/// Draw images for a caption.
#[derive(Debug, Parser)]
pub struct Cli {
    /// What to draw, for example "red apple"; may be left out with --image
    #[arg(required_unless_present = "image")]
    caption: Option<String>,
    /// Draws variations of this image; the pipeline needs an image encoder
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Pipeline directory
    #[arg(long, value_name = "DIR", default_value = "models/emoji")]
    model: PathBuf,
    /// Fetches the pipeline owner/name from the Hugging Face hub instead
    #[arg(long, value_name = "OWNER/NAME", conflicts_with = "model")]
    hub: Option<String>,
    /// PNG file; several images get numbers: apple.png, apple-2.png, …
    #[arg(long, value_name = "FILE", default_value = "out/image.png")]
    out: PathBuf,
    /// Number of images
    #[arg(long, value_name = "N", default_value_t = 1)]
    num_images: usize,
    /// Seed of the first image; drawn at random and printed if not given
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Sampling steps of the prior
    #[arg(long, value_name = "N")]
    prior_steps: Option<usize>,
    /// Sampling steps of the decoder
    #[arg(long, value_name = "N")]
    decoder_steps: Option<usize>,
    /// Sampling steps of every upsampler
    #[arg(long, value_name = "N")]
    upsampler_steps: Option<usize>,
    /// Guidance scale of the decoder; 1 is none
    #[arg(long, value_name = "G")]
    guidance: Option<f64>,
    /// Writes no caption, seed, model and version into the PNG
    #[arg(long)]
    no_metadata: bool,
    /// Side of the images in pixels: that of the decoder or of one of the upsamplers; the model's largest if not given
    #[arg(long, value_name = "PIXELS")]
    size: Option<usize>,
    /// A further upsampler, taken when --size is more than the model's own draw
    #[arg(long, value_name = "DIR", default_value = "models/emoji-1024/upsampler_2")]
    upsampler: PathBuf,
    /// Evaluates upsamplers in tiles of so many pixels, with a quarter of overlap: slower, and memory is bounded by the tile
    #[arg(long, value_name = "PIXELS")]
    tile: Option<usize>,
    /// Device: default, flex, cuda:0, wgpu, …
    #[arg(long, default_value = "default")]
    device: String,
    /// Holds one stage in memory at a time: slower, and memory for the largest stage is enough
    #[arg(long)]
    one_stage: bool,
    /// Element type in which the diffusion networks compute
    #[arg(long, value_enum, default_value = "f32")]
    compute_type: Type,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Type {
    F32,
    F16,
    Bf16,
}

impl Cli {
    fn request(&self) -> Result<GenerateRequest> {
        let mut request = GenerateRequest::new(self.caption.as_deref().unwrap_or_default()).num_images(self.num_images);
        if let Some(path) = &self.image {
            request = request.embedding_of(image::open(path)?);
        }
        if let Some(seed) = self.seed {
            request = request.seed(seed);
        }
        if let Some(steps) = self.prior_steps {
            request = request.prior_steps(steps);
        }
        if let Some(steps) = self.decoder_steps {
            request = request.decoder_steps(steps);
        }
        let tiling = self.tile.map(|size| Tiling { size, overlap: size / 4 });
        request =
            request.upsampler_options(UpsamplerOptions { steps: self.upsampler_steps, tiling, ..Default::default() });
        if let Some(size) = self.size {
            request = request.size(size);
        }
        if let Some(guidance) = self.guidance {
            request = request.guidance(guidance);
        }
        Ok(request)
    }

    fn options(&self) -> Result<LoadOptions> {
        let residency = if self.one_stage { Residency::OneStage } else { Residency::Resident };
        let compute_type = match self.compute_type {
            Type::F32 => FloatType::F32,
            Type::F16 => FloatType::F16,
            Type::Bf16 => FloatType::Bf16,
        };
        Ok(LoadOptions::new(&dalle2::device(&self.device)?).residency(residency).compute_type(compute_type))
    }

    /// What the PNG of image `index` says of how it was made.
    fn provenance(&self, seed: u64, index: usize) -> Option<Provenance> {
        (!self.no_metadata).then(|| Provenance {
            caption: self.caption.clone().unwrap_or_default(),
            seed: Some(seed.wrapping_add(index as u64)),
            model: self.hub.clone().unwrap_or_else(|| self.model.display().to_string()),
            software: concat!("dalle2 ", env!("CARGO_PKG_VERSION")).to_owned(),
        })
    }

    /// The file of image `index`.
    fn file(&self, index: usize) -> PathBuf {
        if index == 0 {
            return self.out.clone();
        }
        let stem = self.out.file_stem().unwrap_or_default().to_string_lossy();
        self.out.with_file_name(format!("{stem}-{}.png", index + 1))
    }
}

pub fn run(cli: &Cli) -> Result<()> {
    check_writable(&cli.out)?;
    let start = Instant::now();
    let request = cli.request()?;
    let options = cli.options()?;
    let mut pipeline = match &cli.hub {
        Some(repo) => from_hub(repo, &options)?,
        None => Pipeline::from_pretrained_with(&cli.model, &options)?,
    };
    if cli.size.is_some_and(|size| size > pipeline.image_size()) {
        let upsampler = DiffusionUpsampler::load_with(&cli.upsampler, &options)?;
        pipeline = pipeline.to_builder().upsampler(upsampler).build()?;
    }
    let loading = start.elapsed();

    let bar = ProgressBar::no_length().with_style(ProgressStyle::with_template("{msg:14} {bar:30} {pos}/{len}")?);
    let generation = pipeline.generate_with(request, |event| {
        bar.set_length(event.total as u64);
        bar.set_position(event.step as u64);
        bar.set_message(event.stage.to_string());
        Ok(())
    })?;
    bar.finish_and_clear();

    println!("seed {}", generation.seeds[0]);
    println!("{:14} {:6.2} s", "loading", loading.as_secs_f64());
    for time in &generation.times {
        println!("{:14} {:6.2} s", time.stage.to_string(), time.duration.as_secs_f64());
    }
    let sampling: Duration = generation.times.iter().map(|time| time.duration).sum();
    println!("{:14} {:6.2} s", "sampling", sampling.as_secs_f64());
    if let Some(bytes) = peak_memory() {
        println!("{:14} {:6.0} MiB", "peak memory", bytes as f64 / f64::from(1 << 20));
    }
    for (index, drawn) in generation.images.iter().enumerate() {
        let file = cli.file(index);
        save_png_with(drawn, &file, cli.provenance(generation.seeds[0], index).as_ref())?;
        println!("{} ({} x {})", file.display(), drawn.width(), drawn.height());
    }
    Ok(())
}

/// Fetches a pipeline with a bar for each file.
fn from_hub(repo: &str, options: &LoadOptions) -> Result<Pipeline> {
    let style = "{msg:50} {bar:20} {bytes}/{total_bytes} {bytes_per_sec}";
    let bar = ProgressBar::no_length().with_style(ProgressStyle::with_template(style)?);
    let pipeline = Pipeline::from_hub_with(repo, &Hub::new(), options, |download| {
        bar.set_length(download.total);
        bar.set_position(download.done);
        bar.set_message(download.file.to_owned());
    })?;
    bar.finish_and_clear();
    Ok(pipeline)
}

/// Largest resident size of this process so far, in bytes, where the system tells it (Linux).
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Fails before the work, not after it, when the result could not be written.
fn check_writable(file: &Path) -> Result<()> {
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).with_context(|| format!("cannot write to {}", dir.display()))?;
    tempfile::tempfile_in(dir).with_context(|| format!("cannot write to {}", dir.display()))?;
    anyhow::ensure!(!file.is_dir(), "{} is a directory: name a PNG file", file.display());
    Ok(())
}
