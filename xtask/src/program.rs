//! Programs of this workspace that are built by cargo and run without it.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::command::{cargo, line, root};

/// A program that is built before measurements start.
#[derive(Debug)]
pub struct Program {
    pub name: String,
    pub path: PathBuf,
}

impl Program {
    pub fn bench(name: &str) -> Result<Self> {
        Self::build(name, &["bench", "--bench", name, "--no-run"])
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

    /// Returns a command with arguments, in the workspace's root.
    pub fn command(&self, arguments: &[&OsStr]) -> Command {
        let mut command = Command::new(&self.path);
        command.args(arguments).current_dir(root());
        command
    }
}

/// Returns the path of the program `name` in cargo's messages.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut matching = messages.filter(|message| message["target"]["name"] == name);
    matching.find_map(|message| message["executable"].as_str().map(PathBuf::from))
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
