//! Compares `benches/pipeline.rs` with `benches/peer/pipeline.py`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde::Deserialize;

use super::Common;
use super::report::{Report, Unit, median};
use super::sides::{self, Peer};
use crate::command::root;
use crate::program::Program;
use crate::tools;

/// Steps of prior, decoder and super-resolution in a full generation: the defaults of diffusers' `UnCLIPPipeline`.
const FULL: [usize; 3] = [25, 25, 7];
/// Names of the stages on both sides.
const STAGES: [&str; 3] = ["prior", "decoder", "upsampler 1"];

#[derive(Debug, Clone, Args)]
pub struct Pipeline {
    #[command(flatten)]
    pub(super) common: Common,
    /// An unCLIP checkpoint in the layout of diffusers; if it does not exist, one of Karlo's size with random weights is
    /// written (6.8 GB)
    #[arg(long, value_name = "DIR", default_value = "out/karlo")]
    model: PathBuf,
    /// Steps of every stage, at least 3: the first includes loading, and the last of super-resolution uses its second
    /// network
    #[arg(long, value_name = "N", default_value_t = 3)]
    steps: usize,
    /// Element type: PyTorch computes everything in it, dalle2 on the CPU the products with weights
    #[arg(long, value_enum, value_name = "TYPE", default_value_t = Compute::F32)]
    compute: Compute,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Compute {
    F32,
    Bf16,
}

impl Compute {
    /// Returns the names in PyTorch and in `benches/pipeline.rs`.
    fn names(self) -> [&'static str; 2] {
        match self {
            Self::F32 => ["float32", "f32"],
            Self::Bf16 => ["bfloat16", "bf16"],
        }
    }
}

/// One side's results for a generation.
#[derive(Debug, Deserialize)]
struct Generation {
    opening_seconds: f64,
    peak_bytes: Option<f64>,
    stages: Vec<Stage>,
}

#[derive(Debug, Deserialize)]
struct Stage {
    stage: String,
    steps: usize,
    /// From the end of the previous stage.
    first_step_seconds: f64,
    /// Seconds of each step after the first.
    step_seconds: Vec<f64>,
    peak_bytes: Option<f64>,
}

/// Seconds per step, without each stage's first step.
struct PerStep {
    prior: f64,
    decoder: f64,
    /// One value per network of super-resolution.
    super_resolution: [f64; 2],
}

impl Generation {
    fn per_step(&self) -> Result<PerStep> {
        let of = |at: usize, drop: usize| {
            let seconds = &self.stages[at].step_seconds;
            let measured = seconds.get(..seconds.len().saturating_sub(drop)).and_then(median);
            measured.with_context(|| format!("{} did not measure enough steps", STAGES[at]))
        };
        let last = self.stages[2].step_seconds.last().copied().context("super-resolution did not measure a step")?;
        Ok(PerStep { prior: of(0, 0)?, decoder: of(1, 0)?, super_resolution: [of(2, 1)?, last] })
    }

    /// Returns the seconds until the end of the first step: opening, text encoder, loading the prior.
    fn until_first_step(&self) -> f64 {
        self.opening_seconds + self.stages[0].first_step_seconds
    }

    /// Returns the seconds of the steps of a full generation.
    fn steps(&self) -> Result<f64> {
        let PerStep { prior, decoder, super_resolution: [first, last] } = self.per_step()?;
        let [n, m, k] = FULL.map(|steps| steps as f64);
        Ok(n * prior + m * decoder + (k - 1.0) * first + last)
    }

    /// Returns the seconds of a full generation in a new process, with each stage's first step as measured.
    fn total(&self) -> Result<f64> {
        let PerStep { prior, decoder, super_resolution: [first, _] } = self.per_step()?;
        let firsts: f64 = self.stages.iter().map(|stage| stage.first_step_seconds).sum();
        Ok(self.opening_seconds + firsts + self.steps()? - prior - decoder - first)
    }

    fn check(&self, side: &str, steps: usize) -> Result<()> {
        let measured: Vec<(&str, usize)> = self.stages.iter().map(|s| (s.stage.as_str(), s.steps)).collect();
        if measured != STAGES.map(|stage| (stage, steps)) {
            bail!("{side} measured {measured:?}, expected {steps} steps of each of {STAGES:?}");
        }
        Ok(())
    }
}

pub fn compare(options: &Pipeline, report: &mut Report) -> Result<()> {
    let Pipeline { common, model, steps, compute } = options;
    if *steps < 3 {
        bail!("--steps {steps}: must be at least 3: one step of each network of super-resolution after the first");
    }
    let model = root().join(model);
    let bench = Program::bench("pipeline")?;
    if !model.join("model_index.json").is_file() {
        tools::run_all("random-checkpoint", &["--preset".into(), "karlo".into(), "--out".into(), (&model).into()])?;
    }
    let steps = steps.to_string();
    let flags = ["--prior-steps", &steps, "--decoder-steps", &steps, "--upsampler-steps", &steps];
    for _ in 0..common.rounds {
        let [theirs, ours] = compute.names();
        let mut arguments = vec![model.as_os_str(), "--dtype".as_ref(), theirs.as_ref()];
        arguments.extend(flags.iter().map(std::ffi::OsStr::new));
        let Peer { versions, output: theirs, .. } = sides::peer::<Generation>(common, "pipeline.py", &arguments)?;
        report.versions(versions);
        let mut arguments = vec!["--model".as_ref(), model.as_os_str(), "--compute".as_ref(), ours.as_ref()];
        arguments.extend(flags.iter().map(std::ffi::OsStr::new));
        let ours: Generation = sides::written_by(common, &bench, &arguments)?;
        theirs.check("PyTorch", options.steps)?;
        ours.check("benches/pipeline.rs", options.steps)?;
        add(report, &ours, &theirs)?;
    }
    report.note(format!(
        "Per step: from the end of one step to the end of the next, including the sampler's arithmetic, without a stage's \
         first step. Prior and decoder compute a batch of 2 for guidance, super-resolution 1. Full generation: \
         {} + {} + {} steps, estimated from these. dalle2 keeps one stage in memory at a time, PyTorch all of them.",
        FULL[0], FULL[1], FULL[2]
    ));
    Ok(())
}

/// Adds the rows of one round.
fn add(report: &mut Report, ours: &Generation, theirs: &Generation) -> Result<()> {
    let (a, b) = (ours.per_step()?, theirs.per_step()?);
    let [[a_first, a_last], [b_first, b_last]] = [a.super_resolution, b.super_resolution];
    for (name, ours, theirs) in [
        ("prior, per step", a.prior, b.prior),
        ("decoder, per step", a.decoder, b.decoder),
        ("super-resolution, per step", a_first, b_first),
        ("super-resolution, last step", a_last, b_last),
        ("full generation, steps only", ours.steps()?, theirs.steps()?),
        ("full generation, with opening and loading", ours.total()?, theirs.total()?),
        ("opening", ours.opening_seconds, theirs.opening_seconds),
        ("opening, text encoder and first step", ours.until_first_step(), theirs.until_first_step()),
    ] {
        report.add(name, Unit::Seconds, ours, Some(theirs));
    }
    let stages = ours.stages.iter().zip(&theirs.stages).map(|(a, b)| (a.stage.as_str(), a.peak_bytes, b.peak_bytes));
    for (name, ours, theirs) in std::iter::once(("the run", ours.peak_bytes, theirs.peak_bytes)).chain(stages) {
        if let Some(ours) = ours {
            report.add(&format!("peak memory, {name}"), Unit::Bytes, ours, theirs);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generation() -> Generation {
        let stage = |name: &str, first: f64, rest: [f64; 2]| Stage {
            stage: name.into(),
            steps: 3,
            first_step_seconds: first,
            step_seconds: rest.to_vec(),
            peak_bytes: None,
        };
        Generation {
            opening_seconds: 10.0,
            peak_bytes: None,
            stages: vec![
                stage("prior", 5.0, [1.0, 3.0]),
                stage("decoder", 7.0, [4.0, 4.0]),
                stage("upsampler 1", 20.0, [10.0, 12.0]),
            ],
        }
    }

    #[test]
    fn a_generation_is_the_sum_of_its_steps() {
        let generation = generation();
        assert_eq!(generation.until_first_step(), 15.0);
        assert_eq!(generation.steps().unwrap(), 25.0 * 2.0 + 25.0 * 4.0 + 6.0 * 10.0 + 12.0);
        // 10 to open, the first steps as measured, and 24, 24 and 5 + 1 more steps.
        let expected = 10.0 + (5.0 + 7.0 + 20.0) + 24.0 * 2.0 + 24.0 * 4.0 + 5.0 * 10.0 + 12.0;
        assert_eq!(generation.total().unwrap(), expected);
    }

    #[test]
    fn other_stages_and_too_few_steps_are_refused() {
        let mut generation = generation();
        assert!(generation.check("ours", 3).is_ok());
        assert!(generation.check("ours", 4).unwrap_err().to_string().contains("expected 4 steps"));
        generation.stages[2].step_seconds.remove(0);
        assert!(generation.steps().unwrap_err().to_string().contains("upsampler 1"));
        generation.stages.remove(0);
        assert!(generation.check("ours", 3).is_err());
    }
}
