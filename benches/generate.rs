//! Seconds per stage and peak memory of one image with the bundled model.
//!
//! ```text
//! cargo bench --bench generate
//! ```
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

use std::time::Instant;

use dalle2::{GenerateRequest, Pipeline};

/// Measured runs, after one warm-up run.
const RUNS: u64 = 5;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    dalle2::keep_memory();
    let model = std::env::var("DALLE2_MODEL").unwrap_or_else(|_| "models/emoji".into());
    let start = Instant::now();
    let pipeline = Pipeline::from_pretrained(&model, &dalle2::device("default")?)?;
    println!("{:16} {:8.3} s", "loading", start.elapsed().as_secs_f64());
    let request = |seed| GenerateRequest::new("red apple").seed(seed);
    pipeline.generate(request(0))?;

    let mut runs: Vec<Vec<f64>> = Vec::new();
    let mut names = Vec::new();
    for seed in 1..=RUNS {
        let generation = pipeline.generate(request(seed))?;
        names = generation.times.iter().map(|time| time.stage.to_string()).collect();
        runs.push(generation.times.iter().map(|time| time.duration.as_secs_f64()).collect());
    }
    names.push("sampling".into());
    for run in &mut runs {
        run.push(run.iter().sum());
    }
    for (i, name) in names.iter().enumerate() {
        let mut seconds: Vec<f64> = runs.iter().map(|run| run[i]).collect();
        seconds.sort_by(f64::total_cmp);
        println!("{name:16} {:8.3} s  (median of {RUNS})", seconds[seconds.len() / 2]);
    }
    match peak_memory() {
        Some(mib) => println!("{:16} {mib:8.0} MiB", "peak memory"),
        None => println!("{:16} not available on this system", "peak memory"),
    }
    Ok(())
}

/// Returns the peak resident size of this process in MiB (Linux).
fn peak_memory() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024.0)
}
