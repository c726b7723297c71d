//! The files of the repository.

use std::process::Command;

use anyhow::Result;

use crate::command::{output, root};

/// Folders with data and generated files.
const EXCLUDED: [&str; 2] = ["models/emoji/runs", "fixtures/"];

/// Returns the tracked files with one of the extensions, relative to the root, without data.
pub fn tracked(extensions: &[&str]) -> Result<Vec<String>> {
    let mut command = Command::new("git");
    command.arg("ls-files").args(extensions.iter().map(|extension| format!("*.{extension}"))).current_dir(root());
    let text = String::from_utf8(output(command)?)?;
    let files = text.lines().filter(|file| !EXCLUDED.iter().any(|part| file.contains(part)));
    // A file that is deleted but still tracked.
    Ok(files.filter(|file| root().join(file).is_file()).map(str::to_owned).collect())
}
