//! Generates images for a caption.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use dalle2::base::image::{open, save_png_with};
use dalle2::decoder::DiffusionUpsampler;
use dalle2::{GenerateRequest, Generation, Pipeline};

use crate::args::{MetadataArgs, ModelArgs, SamplingArgs};
use crate::outcome::check_usage;
use crate::progress::Stages;

const EXAMPLES: &str = "Examples:
  dalle2 generate \"red apple\"
  dalle2 generate \"red apple\" --num-images 4 --seed 7 --out out/apple.png
  dalle2 generate \"red apple\" --decoder-steps 25 --guidance 3
  dalle2 generate \"red apple\" --size 1024 --tile 128
  dalle2 generate --image photo.png --num-images 4";

/// Generate images for a caption
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Cli {
    /// The caption, for example "red apple"; optional with --image
    #[arg(required_unless_present = "image")]
    caption: Option<String>,
    /// Decodes the embedding of this image in place of the prior's; the pipeline needs an image encoder
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Number of images
    #[arg(long, value_name = "N", default_value_t = 1)]
    num_images: usize,
    /// Side of the images: the decoder's or that of an upsampler; the model's largest if not given
    #[arg(long, value_name = "PIXELS")]
    size: Option<usize>,
    /// PNG file; further images are numbered: apple.png, apple-2.png, …
    #[arg(long, value_name = "FILE", default_value = "out/image.png", help_heading = "Output")]
    out: PathBuf,
    #[command(flatten)]
    metadata: MetadataArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    model: ModelArgs,
    /// One more upsampler, for a --size above the largest of the model
    #[arg(long, value_name = "DIR", default_value = "models/emoji-1024/upsampler_2", help_heading = "Model")]
    upsampler: PathBuf,
}

impl Cli {
    fn request(&self) -> Result<GenerateRequest> {
        let mut request = GenerateRequest::new(self.caption.as_deref().unwrap_or_default()).num_images(self.num_images);
        if let Some(path) = &self.image {
            request = request.embedding_of(open(path)?);
        }
        if let Some(size) = self.size {
            request = request.size(size);
        }
        Ok(self.sampling.apply(request).seed(self.sampling.seed()))
    }

    fn pipeline(&self) -> Result<Pipeline> {
        let pipeline = self.model.load()?;
        if self.size.is_some_and(|size| size > pipeline.image_size()) {
            let upsampler = DiffusionUpsampler::load_with(&self.upsampler, &self.model.load_options()?)?;
            return Ok(pipeline.to_builder().upsampler(upsampler).build()?);
        }
        Ok(pipeline)
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
    check_usage!(cli.num_images > 0, "--num-images 0: at least 1");
    check_usage!(!cli.out.is_dir(), "--out {} is a directory: name a PNG file", cli.out.display());
    check_writable(&cli.out)?;
    let start = Instant::now();
    let request = cli.request()?;
    let pipeline = cli.pipeline()?;
    let loading = start.elapsed();
    let stages = Stages::new();
    let generation = pipeline.generate_with(request, |event| stages.show(&event))?;
    drop(stages);

    print_times(&generation, loading);
    let caption = cli.caption.as_deref().unwrap_or_default();
    for (index, image) in generation.images.iter().enumerate() {
        let file = cli.file(index);
        let seed = generation.seeds[index];
        save_png_with(image, &file, cli.metadata.provenance(caption, seed, cli.model.name()).as_ref())?;
        println!("{} ({} x {})", file.display(), image.width(), image.height());
    }
    Ok(())
}

fn print_times(generation: &Generation, loading: Duration) {
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
}

/// Peak resident size of this process in bytes; Linux only.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Fails before the work rather than after it when the result cannot be written.
fn check_writable(file: &Path) -> Result<()> {
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).with_context(|| format!("cannot write to {}", dir.display()))?;
    tempfile::tempfile_in(dir).with_context(|| format!("cannot write to {}", dir.display()))?;
    Ok(())
}
