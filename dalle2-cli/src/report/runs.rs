//! Runs as they are on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use dalle2::base::store::read_json;
use dalle2_train::{StepRecord, read_metrics};
use serde_json::Value;

/// A run with what it wrote.
#[derive(Debug)]
pub struct Run {
    /// Name on the page, the end of its path that tells it from the others.
    pub name: String,
    /// Configuration by dotted path.
    pub settings: BTreeMap<String, String>,
    /// Its steps.
    pub steps: Vec<StepRecord>,
    /// Sample images by step.
    pub samples: Vec<(u64, PathBuf)>,
}

/// Runs with the same metrics, so that their curves are comparable.
#[derive(Debug)]
pub struct Group {
    /// The runs.
    pub runs: Vec<Run>,
}

/// Opens the runs at or below these paths, and groups comparable ones.
pub fn open(paths: &[PathBuf]) -> Result<Vec<Group>> {
    let mut dirs = Vec::new();
    for path in paths {
        let runs = find(path)?;
        if runs.is_empty() {
            bail!("{}: neither a run, which has a metrics.jsonl, nor a folder of runs", path.display());
        }
        dirs.extend(runs);
    }
    dirs.dedup();
    let mut groups: Vec<(BTreeSet<String>, Group)> = Vec::new();
    for (dir, name) in dirs.iter().zip(names(&dirs)) {
        let run = read(dir, name)?;
        let metrics: BTreeSet<String> = run.steps.iter().flat_map(|step| step.metrics.keys().cloned()).collect();
        match groups.iter_mut().find(|(known, _)| *known == metrics) {
            Some((_, group)) => group.runs.push(run),
            None => groups.push((metrics, Group { runs: vec![run] })),
        }
    }
    Ok(groups.into_iter().map(|(_, group)| group).collect())
}

/// The folder itself if it is a run, else the runs in it, by name.
fn find(path: &Path) -> Result<Vec<PathBuf>> {
    if path.join("metrics.jsonl").exists() {
        return Ok(vec![path.to_path_buf()]);
    }
    let entries = fs::read_dir(path).with_context(|| path.display().to_string())?;
    let mut inside = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    inside.retain(|path| path.join("metrics.jsonl").exists());
    inside.sort();
    Ok(inside)
}

/// The shortest ends of the paths that differ from one another.
fn names(dirs: &[PathBuf]) -> Vec<String> {
    let end = |dir: &PathBuf, parts: usize| {
        let all: Vec<_> = dir.components().map(|part| part.as_os_str().to_string_lossy()).collect();
        all[all.len().saturating_sub(parts)..].join("/")
    };
    let most = dirs.iter().map(|dir| dir.components().count()).max().unwrap_or(1);
    let distinct = |parts: &usize| {
        let names: BTreeSet<String> = dirs.iter().map(|dir| end(dir, *parts)).collect();
        names.len() == dirs.len()
    };
    let parts = (1..=most).find(distinct).unwrap_or(most);
    dirs.iter().map(|dir| end(dir, parts)).collect()
}

fn read(dir: &Path, name: String) -> Result<Run> {
    let steps = read_metrics(dir.join("metrics.jsonl"))?;
    let mut settings = BTreeMap::new();
    flatten("", &read_json::<Value>(dir.join("config.json"))?, &mut settings);
    let mut samples = Vec::new();
    if let Ok(entries) = fs::read_dir(dir.join("samples")) {
        for entry in entries {
            let path = entry?.path();
            let step = path.file_stem().and_then(|stem| stem.to_str()?.strip_prefix("step-")?.parse().ok());
            samples.extend(step.map(|step| (step, path)));
        }
    }
    samples.sort();
    Ok(Run { name, settings, steps, samples })
}

/// Every value under its dotted path; lists of numbers stay as they are.
fn flatten(path: &str, value: &Value, into: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                flatten(&path, value, into);
            }
        }
        Value::String(text) => drop(into.insert(path.to_string(), text.clone())),
        Value::Array(list) if list.len() > 16 => {
            into.insert(path.to_string(), format!("[{} values]", list.len()));
        }
        other => drop(into.insert(path.to_string(), other.to_string())),
    }
}

impl Run {
    /// Mean loss of the last steps, at most 50.
    pub fn last_loss(&self) -> Option<f64> {
        let losses: Vec<f64> = self.steps.iter().rev().filter_map(|step| step.loss).take(50).collect();
        (!losses.is_empty()).then(|| losses.iter().sum::<f64>() / losses.len() as f64)
    }

    /// The middle one of the throughputs.
    pub fn throughput(&self) -> Option<f64> {
        let mut all: Vec<f64> = self.steps.iter().map(|step| step.images_per_second).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied()
    }

    /// Most memory of the process, in MiB.
    pub fn memory(&self) -> Option<f64> {
        self.steps.iter().filter_map(|step| step.memory_mib).max_by(f64::total_cmp)
    }

    /// The last validation.
    pub fn validation(&self) -> Option<&StepRecord> {
        self.steps.iter().rev().find(|step| !step.validation.is_empty())
    }

    /// At most `most` samples, spread over the run, the last one among them.
    pub fn some_samples(&self, most: usize) -> Vec<&(u64, PathBuf)> {
        let n = self.samples.len();
        let count = n.min(most);
        (1..=count).map(|i| &self.samples[i * n / count - 1]).collect()
    }
}
