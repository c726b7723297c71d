//! Seconds and peak memory of every stage of a generation: opening, first step, and median of the other steps.
//!
//! ```text
//! cargo bench --bench pipeline -- --model models/emoji
//! cargo xtask peer pipeline --python PYTHON      # compared with diffusers, see benches/peer/README.md
//! ```
//!
//! A stage's first step starts at the end of the previous stage, the prior's at the request. It includes the text encoder
//! and, with `--residency one-stage`, reading the weights.
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use dalle2::base::store::write_json;
use dalle2::base::{image::to_tensor, metrics::psnr};
use dalle2::{FloatType, GenerateRequest, LoadOptions, Pipeline, Residency};
use serde_json::json;

/// Measure seconds per step and peak memory of every stage of a pipeline.
#[derive(Debug, Parser)]
struct Cli {
    /// Pipeline directory
    #[arg(long, value_name = "DIR", default_value = "models/emoji")]
    model: PathBuf,
    /// Caption of the image
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
    /// Whether the weights of every stage stay in memory
    #[arg(long, value_enum, default_value = "one-stage")]
    residency: ResidencyArg,
    /// Element type of the diffusion networks
    #[arg(long, value_enum, default_value = "f32")]
    compute: Compute,
    /// Device: default, flex, cuda:0, wgpu, …
    #[arg(long, default_value = "default")]
    device: String,
    /// Computes on the thread that runs the pipeline, for call stacks in a profiler; see `cargo xtask profile`
    #[arg(long)]
    one_thread: bool,
    /// Generates the image again in f32 and prints the peak signal-to-noise ratio between the two
    #[arg(long)]
    psnr: bool,
    /// Also writes the table as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Passed by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
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
enum ResidencyArg {
    /// Loads a stage when it starts and drops it when it ends
    OneStage,
    /// Loads every stage once
    Resident,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Compute {
    F32,
    F16,
    Bf16,
}

/// Times and memory of one stage.
struct Row {
    stage: String,
    /// End of each step.
    steps: Vec<Instant>,
    /// End of the previous stage.
    start: Instant,
    peak: Option<u64>,
}

impl Row {
    /// Returns the seconds up to the end of the first step, including reading the weights.
    fn first(&self) -> f64 {
        self.steps.first().map_or(0.0, |first| (*first - self.start).as_secs_f64())
    }

    /// Returns the seconds of each step after the first.
    fn others(&self) -> Vec<f64> {
        self.steps.windows(2).map(|ends| (ends[1] - ends[0]).as_secs_f64()).collect()
    }

    /// Returns the median of the steps after the first.
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
        ResidencyArg::OneStage => Residency::OneStage,
        ResidencyArg::Resident => Residency::Resident,
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
    let mut total_peak = peak_memory();
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
                total_peak = total_peak.max(row.peak);
                reset_peak_memory();
                stage_start = Instant::now();
            }
        }
        Ok(())
    })?;
    total_peak = total_peak.max(peak_memory());

    println!("opening {opening:.1} s, peak memory of the run {}", gibibytes(total_peak));
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
        let [low, exact] = images.map(|images| to_tensor(&images, &device));
        println!("peak signal-to-noise ratio to f32: {:.1} dB", psnr(low?, exact?)?[0]);
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
        let table = json!({"opening_seconds": opening, "peak_bytes": total_peak, "stages": stages});
        write_json(path, &table)?;
        println!("{}", path.display());
    }
    Ok(())
}

fn gibibytes(bytes: Option<u64>) -> String {
    bytes.map_or("-".into(), |bytes| format!("{:.2} GiB", bytes as f64 / f64::from(1u32 << 30)))
}

/// Returns the peak resident memory since the last reset (Linux).
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kibibytes| kibibytes << 10)
}

/// Resets the peak resident memory, if the process may do so.
fn reset_peak_memory() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}
