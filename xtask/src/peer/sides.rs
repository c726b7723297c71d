//! Runs the benchmarks of either side with the same number of threads.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::Common;
use crate::command::{line, root};
use crate::program::Program;

/// The output of PyTorch's programs.
#[derive(Debug, Deserialize)]
pub struct Peer<T> {
    pub versions: BTreeMap<String, String>,
    threads: usize,
    #[serde(flatten)]
    pub output: T,
}

/// Runs a script of `benches/peer` and parses its JSON.
pub fn peer<T: DeserializeOwned>(common: &Common, script: &str, arguments: &[&OsStr]) -> Result<Peer<T>> {
    let script = root().join("benches/peer").join(script);
    let mut command = Command::new(&common.python);
    command.arg("-Wignore").arg(&script).args(arguments);
    let peer: Peer<T> = printed(common, command, &script.display().to_string())?;
    let threads = common.threads();
    if peer.threads != threads {
        bail!("PyTorch used {} threads, expected {threads}", peer.threads);
    }
    Ok(peer)
}

/// Runs a program of this workspace and parses the JSON that it prints.
pub fn printed_by<T: DeserializeOwned>(common: &Common, program: &Program, arguments: &[&str]) -> Result<T> {
    let arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
    printed(common, program.command(&arguments), &program.name)
}

/// Runs a program of this workspace and parses the JSON file that it writes.
pub fn written_by<T: DeserializeOwned>(common: &Common, program: &Program, arguments: &[&OsStr]) -> Result<T> {
    let json = std::env::temp_dir().join(format!("xtask-peer-{}.json", std::process::id()));
    let mut command = program.command(arguments);
    command.arg("--json").arg(&json);
    finished(common, command, &program.name)?;
    let cannot = |verb: &str| format!("{}: cannot {verb} {}", program.name, json.display());
    let text = std::fs::read_to_string(&json).with_context(|| cannot("read"))?;
    std::fs::remove_file(&json).with_context(|| cannot("remove"))?;
    serde_json::from_str(&text).with_context(|| format!("{} wrote unexpected JSON", program.name))
}

/// Sets the number of threads; each side reads its own variable.
fn limit(common: &Common, command: &mut Command) {
    let threads = common.threads().to_string();
    command.env("RAYON_NUM_THREADS", &threads).env("OMP_NUM_THREADS", &threads);
}

fn printed<T: DeserializeOwned>(common: &Common, command: Command, name: &str) -> Result<T> {
    let output = finished(common, command, name)?;
    serde_json::from_slice(&output).with_context(|| format!("{name} printed unexpected JSON"))
}

/// Runs a command and returns its output.
fn finished(common: &Common, mut command: Command, name: &str) -> Result<Vec<u8>> {
    limit(common, &mut command);
    let line = line(&command);
    eprintln!("$ {line}");
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        bail!("{name} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}
