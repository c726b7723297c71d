//! The directory of a training run, except for the checkpoints in it.
//!
//! ```text
//! config.json           the configuration, compared on resuming
//! checkpoints/step-N/   everything needed to resume
//! metrics.jsonl         one line per step
//! samples/step-N.png    from the sample hook
//! export/               parts installed by the export hook
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::MAY_CHANGE;
use dalle2_core::store::write_file;
use dalle2_core::{Error, Result};

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Steps done, counting this one.
    pub step: u64,
    /// The loss, if it was finite.
    pub loss: Option<f64>,
    /// The learning rate of the step.
    pub learning_rate: f64,
    /// Norm of all gradients together before clipping, if it was finite.
    pub grad_norm: Option<f64>,
    /// Steps skipped so far because the loss or a gradient was not finite.
    pub skipped: u64,
    /// The factor on the loss in this step, if it is scaled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f64>,
    /// Steps left out so far only to lower that factor; none if the loss is not scaled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overflows: Option<u64>,
    /// The step's metrics besides the loss.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, f64>,
    /// The metrics of the validation after the step.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub validation: BTreeMap<String, f64>,
    /// Items of the batches per second of this step, waiting for the batches included.
    pub images_per_second: f64,
    /// Seconds of training so far, over all sessions of the run.
    pub seconds: f64,
    /// Main memory that the process occupies, in MiB, where the system tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<f64>,
}

/// Reads a `metrics.jsonl`.
///
/// Lines that are not records, such as the end of a line that a power failure cut off, are dropped with a warning.
///
/// # Errors
/// If the file cannot be read.
pub fn read_metrics(path: impl AsRef<Path>) -> Result<Vec<StepRecord>> {
    let path = path.as_ref();
    let mut reader = BufReader::new(File::open(path).map_err(|e| Error::io(path, e))?);
    let (mut records, mut line, mut number) = (Vec::new(), Vec::new(), 0u64);
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line).map_err(|e| Error::io(path, e))? == 0 {
            return Ok(records);
        }
        number += 1;
        match serde_json::from_slice(&line) {
            Ok(record) if line.ends_with(b"\n") => records.push(record),
            _ => tracing::warn!(path = %path.display(), line = number, "damaged line of the metrics dropped"),
        }
    }
}

/// The paths of a run.
#[derive(Debug, Clone)]
pub(super) struct RunDir {
    root: PathBuf,
}

impl RunDir {
    /// Creates what is missing and removes what an interrupted session left half-written.
    pub(super) fn open(root: &Path) -> Result<Self> {
        let dir = Self { root: root.to_path_buf() };
        for path in [dir.checkpoints(), root.join("samples")] {
            fs::create_dir_all(&path).map_err(|e| Error::io(&path, e))?;
        }
        Ok(dir)
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    pub(super) fn checkpoint(&self, step: u64) -> PathBuf {
        self.checkpoints().join(format!("step-{step}"))
    }

    pub(super) fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    pub(super) fn sample(&self, step: u64) -> PathBuf {
        self.root.join("samples").join(format!("step-{step}.png"))
    }

    pub(super) fn export(&self) -> PathBuf {
        self.root.join("export")
    }

    pub(super) fn write_config(&self, config: &Value) -> Result<()> {
        dalle2_core::store::write_json(self.root.join("config.json"), config)
    }
}

/// Removes a directory if it exists.
pub(super) fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, e)),
        _ => Ok(()),
    }
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|e| Error::io(to, e))
}

/// `metrics.jsonl`, open for appending.
pub(super) struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Opens the log, cut back to the lines up to `step`: what was logged after the checkpoint happens again.
    pub(super) fn open(dir: &RunDir, step: u64) -> Result<Self> {
        let path = dir.metrics();
        if path.exists() {
            let mut text = Vec::new();
            for record in read_metrics(&path)?.iter().filter(|record| record.step <= step) {
                serde_json::to_writer(&mut text, record).map_err(|e| Error::json(&path, e))?;
                text.push(b'\n');
            }
            write_file(&path, &text)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(|e| Error::io(&path, e))?;
        Ok(Self { path, file })
    }

    pub(super) fn write(&mut self, record: &StepRecord) -> Result<()> {
        let mut line = serde_json::to_string(record).map_err(|e| Error::json(&self.path, e))?;
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(|e| Error::io(&self.path, e))
    }

    /// Flushes to disk, so that no checkpoint is ahead of its metrics.
    pub(super) fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::io(&self.path, e))
    }
}

/// Refuses to resume with another configuration.
///
/// # Errors
/// Names the first field that differs, both values, and the checkpoint.
pub(super) fn check_same_config(path: &Path, stored: &Value, current: &Value) -> Result<()> {
    let Some((field, old, new)) = first_difference("", stored, current) else { return Ok(()) };
    Err(Error::Training(format!(
        "{} was written with `{field}` = {old}, and now it is {new}: resume with the old value, or start a new run",
        path.display()
    )))
}

fn first_difference(path: &str, old: &Value, new: &Value) -> Option<(String, String, String)> {
    if MAY_CHANGE.contains(&path) || old == new {
        return None;
    }
    let (Value::Object(old_map), Value::Object(new_map)) = (old, new) else {
        return Some((path.to_string(), old.to_string(), new.to_string()));
    };
    let keys: std::collections::BTreeSet<&String> = old_map.keys().chain(new_map.keys()).collect();
    keys.into_iter().find_map(|key| {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        first_difference(&path, old_map.get(key).unwrap_or(&Value::Null), new_map.get(key).unwrap_or(&Value::Null))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_field_that_differs_is_named() {
        let stored = json!({"train": {"steps": 10, "seed": 1}, "model": {"layers": [{"width": 4}]}});
        let grown = json!({"train": {"steps": 20, "seed": 1}, "model": {"layers": [{"width": 4}]}});
        assert!(check_same_config(Path::new("c"), &stored, &grown).is_ok());
        let other = json!({"train": {"steps": 10, "seed": 2}, "model": {"layers": [{"width": 4}]}});
        let message = check_same_config(Path::new("c"), &stored, &other).unwrap_err().to_string();
        assert!(message.contains("`train.seed` = 1") && message.contains("now it is 2"), "{message}");
        let wider = json!({"train": {"steps": 10, "seed": 1}, "model": {"layers": [{"width": 8}]}});
        let message = check_same_config(Path::new("c"), &stored, &wider).unwrap_err().to_string();
        assert!(message.contains("`model.layers`"), "{message}");
        let newer =
            json!({"train": {"steps": 10, "seed": 1, "loss_scaling": null}, "model": {"layers": [{"width": 4}]}});
        assert!(check_same_config(Path::new("c"), &stored, &newer).is_ok(), "a new field that is not used");
        let lacking = json!({"train": {"steps": 10, "seed": 1}});
        assert!(check_same_config(Path::new("c"), &stored, &lacking).is_err());
    }

    #[test]
    fn metrics_are_cut_back_to_the_checkpoint() {
        let temp = tempfile::tempdir().unwrap();
        let dir = RunDir::open(temp.path()).unwrap();
        let mut log = MetricsLog::open(&dir, 0).unwrap();
        (1..=5).for_each(|step| log.write(&StepRecord { step, ..Default::default() }).unwrap());
        log.file.write_all(b"{\"step\": 6, \"lo").unwrap();
        drop(log);
        let mut log = MetricsLog::open(&dir, 3).unwrap();
        log.write(&StepRecord { step: 4, loss: Some(0.5), ..Default::default() }).unwrap();
        let records = read_metrics(dir.metrics()).unwrap();
        assert_eq!(records.iter().map(|r| r.step).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(records[3].loss, Some(0.5));
    }
}
