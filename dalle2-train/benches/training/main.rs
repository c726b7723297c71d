//! Seconds of one training step of each part: forward pass, loss, backward pass and AdamW's update, in f32.
//!
//! ```text
//! cargo bench --bench training
//! cargo bench --bench training -- decoder clip
//! cargo xtask peer training --python PYTHON      # compared with PyTorch, see benches/peer/README.md
//! ```
//!
//! Weights and batches are noise from fixed seeds. Batch sizes and widths match the bundled model's training.
//! `--export DIR` writes weights and batches of `decoder` and `clip` in the layout of diffusers and transformers, for
//! `benches/peer/training.py`. Equal losses in the first steps show that both sides compute the same steps.
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

mod parts;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use burn::prelude::*;
use clap::Parser;
use dalle2::base::on_pool;
use dalle2_train::{TrainConfig, TrainTask, optimizer};
use serde_json::{Map, Value, json};

/// Warm-up steps; their losses are reported.
const WARM_UP: usize = 4;
/// Minimum seconds and minimum number of measured steps.
const MEASURE: f64 = 8.0;
const MIN_STEPS: usize = 5;

/// Measure training steps.
#[derive(Debug, Parser)]
struct Cli {
    /// Parts to measure: decoder, clip, prior, autoregressive-prior, upsampler
    names: Vec<String>,
    /// Writes weights and batches for the comparison with PyTorch, without measuring
    #[arg(long, value_name = "DIR")]
    export: Option<PathBuf>,
    /// Prints the results as one JSON object
    #[arg(long)]
    json: bool,
    /// Passed by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// Results by name of the part.
struct Report {
    cli: Cli,
    parts: Map<String, Value>,
}

impl Report {
    fn wants(&self, name: &str) -> bool {
        self.cli.names.is_empty() || self.cli.names.iter().any(|selected| selected == name)
    }

    /// Trains `task` repeatedly on one batch.
    fn measure<M>(&mut self, name: &str, task: M, batch: M::Batch, size: usize)
    where
        M: TrainTask,
        M::Batch: Clone,
    {
        let (parameters, device) = (task.num_params(), Device::flex());
        let config = TrainConfig { learning_rate: 1e-4, weight_decay: 0.01, ..Default::default() };
        let mut optimizer = optimizer(&config, &task);
        let (mut task, mut losses, mut seconds) = (Some(task), Vec::new(), Vec::new());
        let mut measured = 0.0;
        while seconds.len() < MIN_STEPS || measured < MEASURE {
            let Some(now) = task.take() else { break };
            let start = Instant::now();
            let batch = batch.clone();
            let (next, loss) = on_pool(&device, || {
                let output = now.gradients(batch, 1.0);
                let loss = output.output.loss;
                (optimizer.step(config.learning_rate, now, output.grads).after_step(), loss)
            });
            let loss: f32 = loss.into_scalar();
            let elapsed = start.elapsed().as_secs_f64();
            task = Some(next);
            if losses.len() < WARM_UP {
                losses.push(loss);
            } else {
                seconds.push(elapsed);
                measured += elapsed;
            }
        }
        seconds.sort_by(f64::total_cmp);
        let median = seconds[seconds.len() / 2];
        if !self.cli.json {
            let millions = parameters as f64 / 1e6;
            println!(
                "{name:22} {millions:6.2} M parameters, batch {size:3} {:9.1} ms {:8.3} steps/s",
                median * 1e3,
                1.0 / median
            );
        }
        let result = json!({"seconds": median, "batch": size, "parameters": parameters, "losses": losses});
        self.parts.insert(name.into(), result);
    }
}

fn main() -> Result<()> {
    dalle2::keep_memory();
    let mut report = Report { cli: Cli::parse(), parts: Map::new() };
    let device = Device::flex().autodiff();
    if let Some(dir) = &report.cli.export {
        parts::export_decoder(dir, &device)?;
        return parts::export_clip(dir, &device);
    }
    if report.wants("decoder") {
        let (task, batch) = parts::decoder(&device)?;
        report.measure("decoder", task, batch, parts::BATCH);
    }
    if report.wants("clip") {
        let (task, batch) = parts::clip(&device)?;
        report.measure("clip", task, batch, parts::BATCH);
    }
    if report.wants("prior") {
        let (task, batch) = parts::prior(&device)?;
        report.measure("prior", task, batch, parts::PRIOR_BATCH);
    }
    if report.wants("autoregressive-prior") {
        let (task, batch) = parts::autoregressive_prior(&device)?;
        report.measure("autoregressive-prior", task, batch, parts::PRIOR_BATCH);
    }
    if report.wants("upsampler") {
        let (task, batch) = parts::upsampler(&device)?;
        report.measure("upsampler", task, batch, parts::BATCH);
    }
    if report.cli.json {
        println!("{}", Value::Object(report.parts));
    }
    Ok(())
}
