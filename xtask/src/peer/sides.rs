//! Running either side, with the same number of threads.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Common;
use crate::{cargo, line, root};

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

/// A program of this workspace that is built once, so that no measurement waits for cargo.
#[derive(Debug)]
pub struct Program {
    name: String,
    path: PathBuf,
}

impl Program {
    pub fn bench(name: &str) -> Result<Self> {
        Self::build(name, &["bench", "--bench", name, "--no-run"])
    }

    pub fn example(name: &str) -> Result<Self> {
        Self::build(name, &["build", "--release", "--example", name])
    }

    fn build(name: &str, arguments: &[&str]) -> Result<Self> {
        let mut command = cargo(arguments);
        command.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
        let line = line(&command);
        eprintln!("$ {line}");
        let output = command.output().with_context(|| format!("cannot start `{line}`"))?;
        if !output.status.success() {
            bail!("`{line}` failed ({})", output.status);
        }
        let path = executable(&String::from_utf8_lossy(&output.stdout), name);
        Ok(Self { name: name.into(), path: path.with_context(|| format!("`{line}` built no `{name}`"))? })
    }

    pub fn command(&self, arguments: &[&OsStr]) -> Command {
        let mut command = Command::new(&self.path);
        command.args(arguments).current_dir(root());
        command
    }

    /// Runs the program and reads the JSON that it prints.
    pub fn printed<T: DeserializeOwned>(&self, common: &Common, arguments: &[&str]) -> Result<T> {
        let arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
        printed(common, self.command(&arguments), &self.name)
    }

    /// Runs the program and reads the JSON that it writes.
    pub fn written<T: DeserializeOwned>(&self, common: &Common, arguments: &[&OsStr]) -> Result<T> {
        let json = std::env::temp_dir().join(format!("xtask-peer-{}.json", std::process::id()));
        let mut command = self.command(arguments);
        command.arg("--json").arg(&json);
        finished(common, command, &self.name)?;
        let cannot = |what: &str| format!("{}: cannot {what} {}", self.name, json.display());
        let text = std::fs::read_to_string(&json).with_context(|| cannot("read"))?;
        std::fs::remove_file(&json).with_context(|| cannot("remove"))?;
        serde_json::from_str(&text).with_context(|| format!("{} wrote something else than its JSON", self.name))
    }
}

/// The program called `name` in the messages of cargo.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut found = messages.filter(|message| message["target"]["name"] == name);
    found.find_map(|message| message["executable"].as_str().map(PathBuf::from))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_found_among_the_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"a"},"executable":"/bin/a"}
not JSON
{"reason":"compiler-artifact","target":{"name":"b"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"b"},"executable":"/bin/b"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages, "b"), Some("/bin/b".into()));
        assert_eq!(executable(messages, "c"), None);
    }
}
