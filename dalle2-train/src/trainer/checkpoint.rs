//! Checkpoints: written atomically, verified before use.
//!
//! A checkpoint is a directory `step-N` of Burn's own record files, which keep the parameter ids that the optimizer's state
//! and the average are keyed by. It is written under a hidden name, flushed and renamed. `state.json`, written last, holds
//! the length and checksum of every other file.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use burn::optim::{ModuleOptimizer, OptimizerRecord};
use burn::prelude::*;
use burn::store::ModuleRecord;
use burn::tensor::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::adamw::optimizer;
use super::run_dir::{RunDir, check_same_config, remove_dir, rename};
use super::state::TrainState;
use super::{Ema, TrainConfig};
use dalle2_core::store::{read_json, write_json};
use dalle2_core::{Error, Result};

const VERSION: u32 = 1;
const MODEL: &str = "model.bpk";
const OPTIMIZER: &str = "optim.bpk";
const AVERAGE: &str = "ema.bpk";
const CONFIG: &str = "config.json";
const STATE: &str = "state.json";
const PART: &str = ".part-";

/// The model, its optimizer and its average.
pub(super) struct Learner<M> {
    pub model: M,
    pub optimizer: ModuleOptimizer,
    pub average: Option<Ema<M>>,
}

impl<M: Module> Learner<M> {
    pub(super) fn new(model: M, config: &TrainConfig) -> Self {
        let optimizer = optimizer(config, &model);
        let average = config.ema_decay.map(|decay| Ema::new(&model, decay));
        Self { model, optimizer, average }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    version: u32,
    state: TrainState,
    ema_updates: Option<u64>,
    files: BTreeMap<String, Checksum>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Checksum {
    bytes: u64,
    crc32: u32,
}

/// Which checkpoints stay when a newer one is written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keep {
    newest: usize,
    every: Option<u64>,
    best: Option<u64>,
}

impl Keep {
    pub(super) fn new(config: &TrainConfig, state: &TrainState) -> Self {
        Self { newest: config.keep_checkpoints, every: config.keep_every, best: state.best.map(|best| best.step) }
    }

    /// Whether the checkpoint of `step` stays, which is the `age`-th newest, counted from 0.
    fn keeps(self, step: u64, age: usize) -> bool {
        age < self.newest || self.every.is_some_and(|every| step.is_multiple_of(every)) || self.best == Some(step)
    }
}

/// Writes a checkpoint, then deletes older ones.
pub(super) fn save<M: Module>(
    dir: &RunDir,
    learner: &Learner<M>,
    state: &TrainState,
    config: &Value,
    keep: Keep,
) -> Result<PathBuf> {
    let checkpoints = dir.checkpoints();
    let path = dir.checkpoint(state.step);
    let part = checkpoints.join(format!("{PART}{}-{}", state.step, std::process::id()));
    let written = write_parts(&part, learner, state, config).and_then(|()| {
        remove_dir(&path)?;
        rename(&part, &path)?;
        sync_dir(&checkpoints)
    });
    if let Err(error) = written {
        // Best effort: the error that matters is the one above.
        let _ = remove_dir(&part);
        return Err(error);
    }
    let older = list(dir)?.into_iter().rev().filter(|(step, _)| *step <= state.step);
    older
        .enumerate()
        .filter(|(age, (step, _))| !keep.keeps(*step, *age))
        .try_for_each(|(_, (_, old))| remove_dir(&old))?;
    Ok(path)
}

fn write_parts<M: Module>(part: &Path, learner: &Learner<M>, state: &TrainState, config: &Value) -> Result<()> {
    remove_dir(part)?;
    fs::create_dir_all(part).map_err(|e| Error::io(part, e))?;
    let save = |name: &str, result: Result<(), burn::store::RecordError>| {
        result.map_err(|e| Error::format(part.join(name), format!("cannot be written: {e}")))
    };
    save(MODEL, learner.model.clone().into_record().save(part.join(MODEL)))?;
    save(OPTIMIZER, learner.optimizer.save(part.join(OPTIMIZER)))?;
    if let Some(average) = &learner.average {
        save(AVERAGE, average.shadow().clone().into_record().save(part.join(AVERAGE)))?;
    }
    write_json(part.join(CONFIG), config)?;
    let mut files = BTreeMap::new();
    for name in [MODEL, OPTIMIZER, AVERAGE, CONFIG] {
        if part.join(name).exists() {
            files.insert(name.to_string(), checksum(&part.join(name))?);
        }
    }
    let ema_updates = learner.average.as_ref().map(Ema::updates);
    write_json(part.join(STATE), &Manifest { version: VERSION, state: state.clone(), ema_updates, files })?;
    sync_dir(part)
}

/// The checkpoints of a run by step.
pub(super) fn list(dir: &RunDir) -> Result<Vec<(u64, PathBuf)>> {
    let path = dir.checkpoints();
    let mut checkpoints = Vec::new();
    for entry in fs::read_dir(&path).map_err(|e| Error::io(&path, e))? {
        let entry = entry.map_err(|e| Error::io(&path, e))?;
        let step = entry.file_name().to_str().and_then(|name| name.strip_prefix("step-")?.parse().ok());
        if let Some(step) = step {
            checkpoints.push((step, entry.path()));
        }
    }
    checkpoints.sort_unstable();
    Ok(checkpoints)
}

/// Deletes checkpoints that were being written when a session ended.
pub(super) fn clean(dir: &RunDir) -> Result<()> {
    let path = dir.checkpoints();
    for entry in fs::read_dir(&path).map_err(|e| Error::io(&path, e))? {
        let entry = entry.map_err(|e| Error::io(&path, e))?;
        if entry.file_name().to_string_lossy().starts_with(PART) {
            tracing::info!(path = %entry.path().display(), "removing a checkpoint that was not finished");
            remove_dir(&entry.path())?;
        }
    }
    Ok(())
}

/// Loads the newest undamaged checkpoint into `model`, or gives the model back when there is none. Damaged ones that are
/// newer are set aside.
///
/// # Errors
/// When all checkpoints are damaged, or the configuration is not the one of the checkpoint.
pub(super) fn resume<M: Module>(
    dir: &RunDir,
    model: M,
    config: &TrainConfig,
    full_config: &Value,
) -> Result<(Learner<M>, TrainState, Option<PathBuf>)> {
    let mut damage = Vec::new();
    for (_, path) in list(dir)?.into_iter().rev() {
        match verify(&path) {
            Ok(manifest) => {
                check_same_config(&path, &read_json::<Value>(path.join(CONFIG))?, full_config)?;
                set_aside(&damage)?;
                let learner = load(&path, &manifest, model, config)?;
                return Ok((learner, manifest.state, Some(path)));
            }
            Err(error) => {
                tracing::warn!(checkpoint = %path.display(), %error, "damaged checkpoint, trying the one before");
                damage.push((path, error));
            }
        }
    }
    if damage.is_empty() {
        return Ok((Learner::new(model, config), TrainState::default(), None));
    }
    let list: Vec<String> = damage.iter().map(|(_, error)| format!("\n  {error}")).collect();
    Err(Error::Training(format!(
        "every checkpoint in {} is damaged, so there is nothing to resume from:{}",
        dir.checkpoints().display(),
        list.concat()
    )))
}

/// The model of a checkpoint, checked, without autodiff: the average of its weights if the run keeps one. `model` is a
/// model of the same configuration, which gives its weights up.
///
/// # Errors
/// When the checkpoint is damaged or was written for another model.
pub fn read_checkpoint<M: Module>(path: impl AsRef<Path>, model: M) -> Result<M> {
    let path = path.as_ref();
    let manifest = verify(path)?;
    let name = if manifest.ema_updates.is_some() { AVERAGE } else { MODEL };
    load_model(path, name, model.valid())
}

/// The newest checkpoint from before the loss rose, by its own record.
pub(super) fn last_good(dir: &RunDir, factor: f64) -> Option<PathBuf> {
    let good = |path: &Path| verify(path).is_ok_and(|manifest| manifest.state.risen(factor).is_none());
    list(dir).ok()?.into_iter().rev().map(|(_, path)| path).find(|path| good(path))
}

fn set_aside(damaged: &[(PathBuf, Error)]) -> Result<()> {
    damaged.iter().try_for_each(|(path, _)| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let aside = path.with_file_name(format!("damaged-{name}"));
        remove_dir(&aside)?;
        rename(path, &aside)
    })
}

fn verify(path: &Path) -> Result<Manifest> {
    let manifest: Manifest = read_json(path.join(STATE))?;
    if manifest.version != VERSION {
        let message = format!("has version {}, this program reads version {VERSION}", manifest.version);
        return Err(Error::format(path.join(STATE), message));
    }
    for (name, expected) in &manifest.files {
        let actual = checksum(&path.join(name))?;
        if actual.bytes != expected.bytes {
            let message = format!("has {} bytes, and {} were written", actual.bytes, expected.bytes);
            return Err(Error::format(path.join(name), message));
        }
        if actual != *expected {
            return Err(Error::format(path.join(name), "does not have the checksum it was written with"));
        }
    }
    Ok(manifest)
}

fn load<M: Module>(path: &Path, manifest: &Manifest, model: M, config: &TrainConfig) -> Result<Learner<M>> {
    let model = load_model(path, MODEL, model)?;
    let record = OptimizerRecord::from_bytes(read(&path.join(OPTIMIZER))?).map_err(|e| unfit(path, OPTIMIZER, e))?;
    let optimizer = optimizer(config, &model).load_record(record);
    let average = match (config.ema_decay, manifest.ema_updates) {
        (Some(decay), Some(updates)) => Some(Ema::resume(load_model(path, AVERAGE, model.valid())?, decay, updates)),
        (Some(decay), None) => Some(Ema::new(&model, decay)),
        (None, _) => None,
    };
    Ok(Learner { model, optimizer, average })
}

/// The model with the tensors and the identities of parameters of the file `name` in `path`.
pub(super) fn load_model<M: Module>(path: &Path, name: &str, model: M) -> Result<M> {
    let record = ModuleRecord::from_bytes(read(&path.join(name))?).map_err(|e| unfit(path, name, e))?;
    model.try_load_record(record).map_err(|e| unfit(path, name, e))
}

fn unfit(path: &Path, name: &str, e: burn::store::RecordError) -> Error {
    Error::format(path.join(name), format!("does not fit the model: {e}"))
}

/// In memory rather than mapped: the file may be deleted while its tensors live.
fn read(path: &Path) -> Result<Bytes> {
    fs::read(path).map(Bytes::from_bytes_vec).map_err(|e| Error::io(path, e))
}

fn checksum(path: &Path) -> Result<Checksum> {
    let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut crc = flate2::Crc::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let read = file.read(&mut buffer).map_err(|e| Error::io(path, e))?;
        if read == 0 {
            return Ok(Checksum { bytes, crc32: crc.sum() });
        }
        crc.update(&buffer[..read]);
        bytes += read as u64;
    }
}

/// Makes a rename survive a power failure. Only some systems can open directories.
fn sync_dir(path: &Path) -> Result<()> {
    if cfg!(unix) { File::open(path).and_then(|dir| dir.sync_all()).map_err(|e| Error::io(path, e)) } else { Ok(()) }
}
