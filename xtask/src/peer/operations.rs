//! Compares `benches/operations.rs` with `benches/peer/operations.py`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Deserialize;

use super::Common;
use super::report::{Report, Unit};
use super::sides::{self, Peer};
use crate::program::Program;

/// Operations that one side measures before it is the other side's turn.
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
    /// Prefix of the operations to measure
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
}

/// The output of `operations.py`.
#[derive(Debug, Deserialize)]
struct Output {
    seconds: BTreeMap<String, f64>,
}

pub fn compare(options: &Operations, report: &mut Report) -> Result<()> {
    let groups: Vec<&str> = match &options.only {
        Some(only) => GROUPS.into_iter().filter(|group| group.starts_with(only.as_str())).collect(),
        None => GROUPS.to_vec(),
    };
    if groups.is_empty() {
        let only = options.only.as_deref().unwrap_or_default();
        bail!("--only {only}: no operation has this prefix; there are {}", GROUPS.join(" "));
    }
    let bench = Program::bench("operations")?;
    for _ in 0..options.common.rounds {
        for group in &groups {
            let peer: Peer<Output> = sides::peer(&options.common, "operations.py", &[group.as_ref()])?;
            let mut ours: BTreeMap<String, f64> = sides::printed_by(&options.common, &bench, &["--json", group])?;
            report.versions(peer.versions);
            for (name, seconds) in peer.output.seconds {
                let own = ours.remove(&name).with_context(|| format!("benches/operations.rs lacks `{name}`"))?;
                report.add(&name, Unit::Seconds, own, Some(seconds));
            }
            if let Some(name) = ours.keys().next() {
                bail!("benches/peer/operations.py lacks `{name}`");
            }
        }
    }
    Ok(())
}
