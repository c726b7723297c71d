//! `benches/operations.rs` beside `benches/peer/operations.py`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Deserialize;

use super::Common;
use super::report::{Report, Unit};
use super::sides::{self, Theirs};
use crate::program::Program;

/// Operations that are measured together before the other side has its turn.
const GROUPS: [&str; 14] = [
    "conv3x3/",
    "conv1x1/",
    "bf16_conv3x3/",
    "bf16_conv1x1/",
    "bf16_linear/",
    "group_norm_silu/",
    "group_norm_film_silu/",
    "silu/",
    "layer_norm/",
    "gelu/",
    "quick_gelu/",
    "linear/",
    "attention/",
    "train_",
];

#[derive(Debug, Clone, Args)]
pub struct Operations {
    #[command(flatten)]
    pub(super) common: Common,
    /// Only operations whose names begin so
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
}

/// What `operations.py` prints.
#[derive(Debug, Deserialize)]
struct Found {
    seconds: BTreeMap<String, f64>,
}

pub fn compare(options: &Operations, report: &mut Report) -> Result<()> {
    let groups: Vec<&str> = match &options.only {
        Some(only) => GROUPS.into_iter().filter(|group| group.starts_with(only.as_str())).collect(),
        None => GROUPS.to_vec(),
    };
    if groups.is_empty() {
        let only = options.only.as_deref().unwrap_or_default();
        bail!("--only {only}: no operation begins so; there are {}", GROUPS.join(" "));
    }
    let bench = Program::bench("operations")?;
    for _ in 0..options.common.rounds {
        for group in &groups {
            let theirs: Theirs<Found> = sides::theirs(&options.common, "operations.py", &[group.as_ref()])?;
            let mut ours: BTreeMap<String, f64> = sides::printed_by(&options.common, &bench, &["--json", group])?;
            report.versions(theirs.versions);
            for (name, seconds) in theirs.found.seconds {
                let own = ours.remove(&name).with_context(|| format!("benches/operations.rs has no `{name}`"))?;
                report.add(&name, Unit::Seconds, own, Some(seconds));
            }
            if let Some(name) = ours.keys().next() {
                bail!("benches/peer/operations.py has no `{name}`");
            }
        }
    }
    Ok(())
}
