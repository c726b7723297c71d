//! `cargo xtask peer`: the benchmarks of `benches/operations.rs` and PyTorch's, alternately, and their ratios.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Deserialize;

use crate::{cargo, root, run};

/// Operations that are measured together before the other side has its turn.
const GROUPS: [&str; 12] = [
    "conv3x3/",
    "conv1x1/",
    "group_norm_silu/",
    "group_norm_film_silu/",
    "silu/",
    "layer_norm/",
    "gelu/",
    "quick_gelu/",
    "linear/",
    "attention/",
    "softmax/",
    "train_",
];

#[derive(Debug, Clone, Args)]
pub struct Peer {
    /// A Python with PyTorch, see benches/peer/README.md
    #[arg(long, value_name = "FILE", default_value = "python3")]
    python: PathBuf,
    /// How often both sides are measured; the medians are compared
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// Only operations whose names begin so
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Writes all seconds as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What `operations.py` prints.
#[derive(Debug, Deserialize)]
struct Theirs {
    version: String,
    threads: usize,
    seconds: BTreeMap<String, f64>,
}

pub fn run_all(peer: &Peer) -> Result<()> {
    if peer.rounds == 0 {
        bail!("--rounds 0: at least one is needed");
    }
    let groups: Vec<&str> = match &peer.only {
        Some(only) => GROUPS.into_iter().filter(|group| group.starts_with(only.as_str())).collect(),
        None => GROUPS.to_vec(),
    };
    if groups.is_empty() {
        bail!("--only {}: no operation begins so; there are {}", peer.only.as_deref().unwrap_or(""), GROUPS.join(" "));
    }
    run(cargo(&["bench", "--bench", "operations", "--no-run"]))?;
    let (mut ours, mut theirs) = (BTreeMap::<String, Vec<f64>>::new(), BTreeMap::<String, Vec<f64>>::new());
    let mut version = String::new();
    for _ in 0..peer.rounds {
        for group in &groups {
            let found = theirs_of(&peer.python, group)?;
            version = format!("PyTorch {}, {} threads", found.version, found.threads);
            let mut own = ours_of(group)?;
            for (name, seconds) in found.seconds {
                let own = own.remove(&name).with_context(|| format!("benches/operations.rs has no `{name}`"))?;
                ours.entry(name.clone()).or_default().push(own);
                theirs.entry(name).or_default().push(seconds);
            }
            if let Some(name) = own.keys().next() {
                bail!("benches/peer/operations.py has no `{name}`");
            }
        }
    }
    println!("\n{version}, medians of {} rounds\n", peer.rounds);
    println!("| operation | ours | PyTorch | PyTorch's time / ours |\n|---|---|---|---|");
    let mut table = Vec::new();
    for (name, seconds) in &ours {
        let (a, b) = (median(seconds), median(&theirs[name]));
        println!("| {name} | {:.3} ms | {:.3} ms | {:.2} |", a * 1e3, b * 1e3, b / a);
        table.push(serde_json::json!({"operation": name, "seconds": seconds, "peer_seconds": theirs[name]}));
    }
    if let Some(path) = &peer.json {
        let text = serde_json::to_string_pretty(&table)?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn theirs_of(python: &Path, group: &str) -> Result<Theirs> {
    let script = root().join("benches/peer/operations.py");
    let output = Command::new(python)
        .args([script.as_os_str(), group.as_ref()])
        .output()
        .with_context(|| format!("cannot start {}", python.display()))?;
    if !output.status.success() {
        bail!("{} failed: {}", script.display(), String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("{} printed something else", script.display()))
}

fn ours_of(group: &str) -> Result<BTreeMap<String, f64>> {
    let mut command = cargo(&["bench", "--quiet", "--bench", "operations", "--", "--json", group]);
    let output = command.output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("the benchmark of {group} failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).context("the benchmark printed something else than JSON")
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
