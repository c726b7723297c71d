//! Running either side, with the same number of threads.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::Common;
use crate::command::{line, root};
use crate::program::Program;

/// What the programs of the other side print.
#[derive(Debug, Deserialize)]
pub struct Theirs<T> {
    pub versions: BTreeMap<String, String>,
    threads: usize,
    #[serde(flatten)]
    pub found: T,
}

/// Runs a script of `benches/peer` and reads the JSON that it prints.
pub fn theirs<T: DeserializeOwned>(common: &Common, script: &str, arguments: &[&OsStr]) -> Result<Theirs<T>> {
    let script = root().join("benches/peer").join(script);
    let mut command = Command::new(&common.python);
    command.arg("-Wignore").arg(&script).args(arguments);
    let found: Theirs<T> = printed(common, command, &script.display().to_string())?;
    let wanted = common.threads();
    if found.threads != wanted {
        bail!("PyTorch used {} threads where {wanted} were asked for", found.threads);
    }
    Ok(found)
}

/// Runs a program of this workspace and reads the JSON that it prints.
pub fn printed_by<T: DeserializeOwned>(common: &Common, program: &Program, arguments: &[&str]) -> Result<T> {
    let arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
    printed(common, program.command(&arguments), &program.name)
}

/// Runs a program of this workspace and reads the JSON that it writes.
pub fn written_by<T: DeserializeOwned>(common: &Common, program: &Program, arguments: &[&OsStr]) -> Result<T> {
    let json = std::env::temp_dir().join(format!("xtask-peer-{}.json", std::process::id()));
    let mut command = program.command(arguments);
    command.arg("--json").arg(&json);
    finished(common, command, &program.name)?;
    let cannot = |what: &str| format!("{}: cannot {what} {}", program.name, json.display());
    let text = std::fs::read_to_string(&json).with_context(|| cannot("read"))?;
    std::fs::remove_file(&json).with_context(|| cannot("remove"))?;
    serde_json::from_str(&text).with_context(|| format!("{} wrote something else than its JSON", program.name))
}

/// Sets the threads of both sides; each looks at its own variable.
fn limit(common: &Common, command: &mut Command) {
    let threads = common.threads().to_string();
    command.env("RAYON_NUM_THREADS", &threads).env("OMP_NUM_THREADS", &threads);
}

fn printed<T: DeserializeOwned>(common: &Common, command: Command, name: &str) -> Result<T> {
    let output = finished(common, command, name)?;
    serde_json::from_slice(&output).with_context(|| format!("{name} printed something else than its JSON"))
}

/// Runs a command quietly to its end, and gives what it printed.
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
