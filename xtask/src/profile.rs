//! `cargo xtask profile`: the share of each operation in a generation's time, by stage.
//!
//! `benches/pipeline.rs` runs on one thread under `perf`, which samples the call stack. A sample counts for the innermost
//! operation of `dalle2_kernels` on its stack and for the stage that called it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::command::{line, root, run};
use crate::program::Program;

/// Bytes of stack per sample, perf's maximum.
const STACK: usize = 65528;
/// Parts of symbol names and the operation they belong to; the innermost frame decides.
const OPERATIONS: [(&str, &str); 11] = [
    ("dalle2_kernels::conv::", "convolutions"),
    ("dalle2_kernels::linear::", "linear"),
    ("dalle2_kernels::attention::", "attention"),
    ("dalle2_kernels::norm::", "norms"),
    ("dalle2_kernels::activation::", "activations"),
    ("dalle2_kernels::axes::", "copies"),
    ("dalle2_kernels::resample::", "resampling"),
    ("burn_flex::ops::pool::", "resampling"),
    ("burn_flex::ops::interpolate", "resampling"),
    ("dalle2_core::store::", "reading weights"),
    ("dalle2_core::text::", "tokenizer"),
];
const REST: &str = "rest";
/// Parts of symbol names and the stage they belong to, in the table's order.
const STAGES: [(&str, &str); 4] = [
    ("dalle2_clip::", "text encoder"),
    ("dalle2_prior::", "prior"),
    ("dalle2_decoder::decoder::", "decoder"),
    ("dalle2_decoder::upsampler::", "upsamplers"),
];
const ELSEWHERE: &str = "elsewhere";

#[derive(Debug, Clone, Args)]
pub struct Profile {
    /// Pipeline directory
    #[arg(long, value_name = "DIR", default_value = "models/emoji")]
    model: PathBuf,
    /// Sampling steps of every stage [default: the model's]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Samples per second; each takes 64 KiB on disk during the run
    #[arg(long, value_name = "HZ", default_value_t = 199)]
    frequency: usize,
}

pub fn run_all(profile: &Profile) -> Result<()> {
    if profile.frequency == 0 {
        bail!("--frequency 0: at least one sample a second is needed");
    }
    let bench = Program::bench("pipeline")?;
    let data = std::env::temp_dir().join(format!("xtask-profile-{}.data", std::process::id()));
    let result = record(profile, &bench, &data).and_then(|()| stacks(&data));
    if data.exists() {
        std::fs::remove_file(&data).with_context(|| format!("cannot remove {}", data.display()))?;
    }
    let shares = Shares::count(&result?);
    if shares.0.is_empty() {
        bail!("perf recorded no samples: the run was too short for --frequency {}", profile.frequency);
    }
    println!("\n{shares}\nShare of a stage's samples on one thread, {} samples per second.", profile.frequency);
    Ok(())
}

fn record(profile: &Profile, bench: &Program, data: &std::path::Path) -> Result<()> {
    let mut command = Command::new("perf");
    command.args(["record", "--quiet", "--event", "cpu-clock", "--freq", &profile.frequency.to_string()]);
    command.arg("--call-graph").arg(format!("dwarf,{STACK}")).arg("--output").arg(data).arg("--").arg(&bench.path);
    command.arg("--one-thread").arg("--model").arg(root().join(&profile.model)).current_dir(root());
    if let Some(steps) = profile.steps {
        for stage in ["prior", "decoder", "upsampler"] {
            command.arg(format!("--{stage}-steps")).arg(steps.to_string());
        }
    }
    run(command).context("perf is needed: `linux-perf` or `linux-tools` in most distributions")
}

/// Returns the call stacks that perf prints.
fn stacks(data: &std::path::Path) -> Result<String> {
    let mut command = Command::new("perf");
    command.args(["script", "--no-inline", "--fields", "ip,sym", "--input"]).arg(data).stderr(Stdio::null());
    let line = line(&command);
    let output = command.output().with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}` failed ({})", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Samples by stage and operation.
#[derive(Debug, Default)]
struct Shares(BTreeMap<&'static str, BTreeMap<&'static str, usize>>);

impl Shares {
    /// Counts stacks that are separated by empty lines and start with the innermost frame.
    fn count(stacks: &str) -> Self {
        let mut shares = Self::default();
        for stack in stacks.split("\n\n") {
            let frames: Vec<&str> = stack.lines().filter_map(|line| Some(line.trim().split_once(' ')?.1)).collect();
            if frames.is_empty() {
                continue;
            }
            let known = |table: &[(&str, &'static str)], frame: &str| {
                table.iter().find(|(part, _)| frame.contains(part)).map(|(_, name)| *name)
            };
            let operation = frames.iter().find_map(|frame| known(&OPERATIONS, frame)).unwrap_or(REST);
            let stage = frames.iter().rev().find_map(|frame| known(&STAGES, frame)).unwrap_or(ELSEWHERE);
            *shares.0.entry(stage).or_default().entry(operation).or_default() += 1;
        }
        shares
    }
}

impl fmt::Display for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let order = STAGES.iter().map(|(_, name)| *name).chain([ELSEWHERE]);
        let stages: Vec<_> = order.filter_map(|stage| Some((stage, self.0.get(stage)?))).collect();
        let names: String = stages.iter().map(|(stage, _)| format!(" {stage} |")).collect();
        writeln!(f, "| |{names}\n|---|{}", "---|".repeat(stages.len()))?;
        let mut operations: Vec<&str> = OPERATIONS.iter().map(|(_, name)| *name).chain([REST]).collect();
        operations.dedup();
        for operation in operations {
            let cells = stages.iter().map(|(_, counts)| {
                let all: usize = counts.values().sum();
                let share = counts.get(operation).map(|count| 100.0 * *count as f64 / all as f64);
                share.map_or(" – |".into(), |share| format!(" {share:.1} % |"))
            });
            writeln!(f, "| {operation} |{}", cells.collect::<String>())?;
        }
        let sums: String = stages.iter().map(|(_, counts)| format!(" {} |", counts.values().sum::<usize>())).collect();
        writeln!(f, "| samples |{sums}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_counts_for_its_innermost_operation_and_its_stage() {
        let stacks = "
          12 gemm_f32::microkernel
          34 dalle2_kernels::linear::linear
          56 dalle2_kernels::attention::attention
          78 dalle2_prior::diffusion::prior::DiffusionPrior::sample
          90 pipeline::main

          12 gemm_f32::microkernel
          34 dalle2_kernels::conv::conv2d
          56 dalle2_decoder::unet::model::UNet::forward
          78 dalle2_decoder::upsampler::DiffusionUpsampler::run

          12 memmove
          34 dalle2_kernels::axes::concat
          56 dalle2_decoder::unet::model::UNet::forward
          78 dalle2_decoder::upsampler::DiffusionUpsampler::run

          12 memmove
";
        let shares = Shares::count(stacks);
        assert_eq!(shares.0["prior"], [("linear", 1)].into());
        assert_eq!(shares.0["upsamplers"], [("convolutions", 1), ("copies", 1)].into());
        assert_eq!(shares.0[ELSEWHERE], [(REST, 1)].into());
        let text = shares.to_string();
        assert!(text.starts_with("| | prior | upsamplers | elsewhere |\n|---|---|---|---|\n"), "{text}");
        assert!(text.contains("| convolutions | – | 50.0 % | – |\n"), "{text}");
        assert!(text.ends_with("| samples | 1 | 2 | 1 |\n"), "{text}");
    }
}
