//! Compares `dalle2-train/benches/training` with `benches/peer/training.py`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Deserialize;

use super::Common;
use super::report::{Report, Unit};
use super::sides::{self, Peer};
use crate::command::{root, run};
use crate::program::Program;

/// Parts that PyTorch has too, and parts without a counterpart.
const COMPARED: [&str; 2] = ["decoder", "clip"];
const OWN: [&str; 3] = ["prior", "autoregressive-prior", "upsampler"];
/// Largest relative difference of the first losses; rounding causes about 1e-5.
const TOLERANCE: f64 = 1e-3;

#[derive(Debug, Clone, Args)]
pub struct Training {
    #[command(flatten)]
    pub(super) common: Common,
    /// Parts to measure [default: all]
    #[arg(long, value_name = "PART", value_delimiter = ',', value_parser = ["decoder", "clip", "prior", "autoregressive-prior", "upsampler"])]
    only: Vec<String>,
    /// Folder of the weights and batches for PyTorch
    #[arg(long, value_name = "DIR", default_value = "out/training")]
    export: PathBuf,
}

/// One side's results for a part.
#[derive(Debug, Deserialize)]
struct Part {
    seconds: f64,
    batch: usize,
    parameters: usize,
    losses: Vec<f64>,
}

/// The output of `training.py`.
#[derive(Debug, Deserialize)]
struct Output {
    parts: BTreeMap<String, Part>,
}

pub fn compare(options: &Training, report: &mut Report) -> Result<()> {
    let Training { common, only, export } = options;
    let is_selected = |name: &&str| only.is_empty() || only.iter().any(|part| part == name);
    let bench = Program::bench("training")?;
    let export = root().join(export);
    run(bench.command(&["--export".as_ref(), export.as_os_str()]))?;
    for _ in 0..common.rounds {
        for name in COMPARED.into_iter().filter(is_selected) {
            let arguments = [export.as_os_str(), name.as_ref()];
            let Peer { versions, output, .. } = sides::peer::<Output>(common, "training.py", &arguments)?;
            report.versions(versions);
            let theirs = output.parts.get(name).with_context(|| format!("training.py did not measure {name}"))?;
            let ours = measure(common, &bench, name)?;
            same_work(name, &ours, theirs)?;
            report.add(&row(name, &ours), Unit::Seconds, ours.seconds, Some(theirs.seconds));
        }
        for name in OWN.into_iter().filter(is_selected) {
            let ours = measure(common, &bench, name)?;
            report.add(&row(name, &ours), Unit::Seconds, ours.seconds, None);
        }
    }
    report.note("Seconds of one step: forward pass, loss, backward pass, AdamW; f32, median of the steps of a round.");
    Ok(())
}

fn measure(common: &Common, bench: &Program, name: &str) -> Result<Part> {
    let mut parts: BTreeMap<String, Part> = sides::printed_by(common, bench, &["--json", name])?;
    parts.remove(name).with_context(|| format!("dalle2-train/benches/training did not measure {name}"))
}

fn row(name: &str, part: &Part) -> String {
    format!("{name}, {:.2} M parameters, batch {}", part.parameters as f64 / 1e6, part.batch)
}

/// Refuses to compare different steps. PyTorch reads every parameter from the exported files, so the numbers of parameters
/// must be equal; the first losses depend on forward pass, gradients and updates.
fn same_work(name: &str, ours: &Part, theirs: &Part) -> Result<()> {
    for (quantity, a, b) in
        [("parameters", ours.parameters, theirs.parameters), ("items in a batch", ours.batch, theirs.batch)]
    {
        if a != b {
            bail!("{name}: {a} {quantity} here and {b} in PyTorch: not comparable");
        }
    }
    let close = |(a, b): (&f64, &f64)| (a - b).abs() <= TOLERANCE * b.abs();
    if ours.losses.len() != theirs.losses.len() || !ours.losses.iter().zip(&theirs.losses).all(close) {
        bail!("{name}: losses {:?} here and {:?} in PyTorch, the steps differ", ours.losses, theirs.losses);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(parameters: usize, losses: &[f64]) -> Part {
        Part { seconds: 1.0, batch: 16, parameters, losses: losses.to_vec() }
    }

    #[test]
    fn steps_that_differ_are_not_compared() {
        let ours = part(10, &[1.0, 0.9]);
        assert!(same_work("a", &ours, &part(10, &[1.00001, 0.9])).is_ok());
        let error = |theirs: &Part| same_work("a", &ours, theirs).unwrap_err().to_string();
        assert!(error(&part(11, &[1.0, 0.9])).contains("10 parameters here and 11"));
        assert!(error(&Part { batch: 8, ..part(10, &[1.0, 0.9]) }).contains("16 items in a batch here and 8"));
        assert!(error(&part(10, &[1.0, 0.8])).contains("the steps differ"));
        assert!(error(&part(10, &[1.0])).contains("the steps differ"));
        assert!(error(&part(10, &[1.0, f64::NAN])).contains("the steps differ"));
    }
}
