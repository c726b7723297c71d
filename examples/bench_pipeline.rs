//! Measures what a generation takes: seconds until the pipeline is open and until a stage's first step is done, seconds
//! per step, and peak memory of every stage.
//!
//! ```text
//! cargo run --release --example bench_pipeline -- --model models/emoji
//! cargo xtask peer pipeline --python PYTHON      # beside diffusers, see benches/peer/README.md
//! ```
//!
//! A stage's first step is counted from the end of the stage before, the prior's from the request: the text encoder and, with
//! `--residency one-stage`, reading the weights are part of it. Seconds per step are the median of the others.
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use dalle2::core::store::write_json;
use dalle2::core::{image::to_tensor, metrics::psnr};
use dalle2::{FloatType, GenerateRequest, LoadOptions, Pipeline, Residency};
use serde_json::json;

/// Measure seconds per step and peak memory of every stage of a pipeline.
#[derive(Debug, Parser)]
struct Cli {
    /// Pipeline directory
    #[arg(long, value_name = "DIR", default_value = "models/emoji")]
    model: PathBuf,
    /// What to draw
    #[arg(long, default_value = "red apple")]
    caption: String,
    /// Sampling steps of the prior
    #[arg(long, value_name = "N")]
    prior_steps: Option<usize>,
    /// Sampling steps of the decoder
    #[arg(long, value_name = "N")]
    decoder_steps: Option<usize>,
    /// Sampling steps of every upsampler
    #[arg(long, value_name = "N")]
    upsampler_steps: Option<usize>,
    /// How long the weights of a stage stay in memory
    #[arg(long, value_enum, default_value = "one-stage")]
    residency: Keep,
    /// Element type of the diffusion networks
    #[arg(long, value_enum, default_value = "f32")]
    compute: Compute,
    /// Device: default, flex, cuda:0, wgpu, …
    #[arg(long, default_value = "default")]
    device: String,
    /// Computes on one thread, the one that runs the pipeline, so that a profiler sees what called what; see `cargo xtask
    /// profile`
    #[arg(long)]
    one_thread: bool,
    /// Draws the image once more in f32, and prints the peak signal-to-noise ratio between both
    #[arg(long)]
    psnr: bool,
    /// Also writes the table as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Cli {
    fn request(&self) -> GenerateRequest {
        let mut request = GenerateRequest::new(&self.caption).seed(0);
        if let Some(steps) = self.prior_steps {
            request = request.prior_steps(steps);
        }
        if let Some(steps) = self.decoder_steps {
            request = request.decoder_steps(steps);
        }
        if let Some(steps) = self.upsampler_steps {
            request = request.upsampler_steps(steps);
        }
        request
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Keep {
    /// A stage is read when it begins and dropped when it ends
    OneStage,
    /// Everything is read once
    Resident,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Compute {
    F32,
    F16,
    Bf16,
}

/// A stage as its steps reported it.
struct Row {
    stage: String,
    /// When each step was done.
    steps: Vec<Instant>,
    /// When the stage before was done.
    start: Instant,
    peak: Option<u64>,
}

impl Row {
    /// Seconds up to the end of the first step: reading the weights is part of it.
    fn first(&self) -> f64 {
        self.steps.first().map_or(0.0, |first| (*first - self.start).as_secs_f64())
    }

    /// Seconds of each step after the first: from the end of the step before to its own.
    fn others(&self) -> Vec<f64> {
        self.steps.windows(2).map(|ends| (ends[1] - ends[0]).as_secs_f64()).collect()
    }

    /// The median of these.
    fn per_step(&self) -> Option<f64> {
        let mut seconds = self.others();
        seconds.sort_by(f64::total_cmp);
        let n = seconds.len();
        (n > 0).then(|| f64::midpoint(seconds[(n - 1) / 2], seconds[n / 2]))
    }
}

fn main() -> Result<()> {
    dalle2::keep_memory();
    let cli = Cli::parse();
    if cli.one_thread {
        rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build_global()?;
    }
    let device = dalle2::device(&cli.device)?;
    let residency = match cli.residency {
        Keep::OneStage => Residency::OneStage,
        Keep::Resident => Residency::Resident,
    };
    let compute = match cli.compute {
        Compute::F32 => FloatType::F32,
        Compute::F16 => FloatType::F16,
        Compute::Bf16 => FloatType::Bf16,
    };
    let start = Instant::now();
    let pipeline = Pipeline::from_pretrained_with(
        &cli.model,
        &LoadOptions::new(&device).residency(residency).compute_type(compute),
    )?;
    let opening = start.elapsed().as_secs_f64();

    let request = cli.request();
    let mut rows: Vec<Row> = Vec::new();
    let mut stage_start = Instant::now();
    let mut whole_peak = peak_memory();
    reset_peak_memory();
    let generation = pipeline.generate_with(request, |event| {
        if event.step == 1 {
            let stage = event.stage.to_string();
            rows.push(Row { stage, steps: Vec::new(), start: stage_start, peak: None });
        }
        if let Some(row) = rows.last_mut() {
            row.steps.push(Instant::now());
            if event.step == event.total {
                row.peak = peak_memory();
                whole_peak = whole_peak.max(row.peak);
                reset_peak_memory();
                stage_start = Instant::now();
            }
        }
        ControlFlow::Continue(())
    })?;
    whole_peak = whole_peak.max(peak_memory());

    println!("opening {opening:.1} s, peak memory of the whole run {}", gibibytes(whole_peak));
    println!("{:14} {:>5} {:>14} {:>14} {:>12}", "stage", "steps", "read + step 1", "s per step", "peak memory");
    for row in &rows {
        println!(
            "{:14} {:>5} {:>12.1} s {:>14} {:>12}",
            row.stage,
            row.steps.len(),
            row.first(),
            row.per_step().map_or("-".into(), |seconds| format!("{seconds:.2}")),
            gibibytes(row.peak)
        );
    }
    let image = &generation.images[0];
    println!("{} x {} pixels in {:.1} s", image.width(), image.height(), start.elapsed().as_secs_f64());
    if cli.psnr {
        drop(pipeline);
        let exact = Pipeline::from_pretrained_with(&cli.model, &LoadOptions::new(&device).residency(residency))?;
        let images = [generation.images, exact.generate(cli.request())?.images];
        let [found, exact] = images.map(|images| to_tensor(&images, &device));
        println!("peak signal-to-noise ratio to f32: {:.1} dB", psnr(found?, exact?)?[0]);
    }
    if let Some(path) = &cli.json {
        let stages: Vec<_> = rows
            .iter()
            .map(|row| {
                json!({
                    "stage": row.stage, "steps": row.steps.len(), "first_step_seconds": row.first(),
                    "step_seconds": row.others(), "seconds_per_step": row.per_step(), "peak_bytes": row.peak,
                })
            })
            .collect();
        let table = json!({"opening_seconds": opening, "peak_bytes": whole_peak, "stages": stages});
        write_json(path, &table)?;
        println!("{}", path.display());
    }
    Ok(())
}

fn gibibytes(bytes: Option<u64>) -> String {
    bytes.map_or("-".into(), |bytes| format!("{:.2} GiB", bytes as f64 / f64::from(1u32 << 30)))
}

/// Most memory that this process had resident since the last reset, where the system tells (Linux).
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kibibytes| kibibytes << 10)
}

/// Starts the peak anew; without the right to do so it stays that of the whole run.
fn reset_peak_memory() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}
