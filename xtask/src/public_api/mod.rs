//! `cargo xtask public-api`: the exported names of every published library, compared with a listing in the repository.

mod crates;
mod exports;
mod print;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::command::root;
use crate::package::libraries;
use crates::Module;
use exports::Exports;

/// Folder of the listings, relative to the workspace's root.
const LISTINGS: &str = "docs/public-api";
/// Lines of a difference that are printed per crate.
const MAX_LINES: usize = 40;

#[derive(Debug, Clone, Default, Args)]
pub struct PublicApi {
    /// Writes the listings instead of comparing them
    #[arg(long)]
    update: bool,
}

/// Prints the number of exported names of each library and compares the listings, or writes them.
pub fn run_all(options: &PublicApi) -> Result<()> {
    let (mut total, mut changed) = (0, Vec::new());
    for library in libraries()? {
        let exports = Exports::of(&Module::read(&library.source)?);
        println!("{:16} {:5} exported names", library.name, exports.names());
        total += exports.names();
        let file = root().join(LISTINGS).join(format!("{}.txt", library.name));
        if options.update {
            write(&file, &exports.listing())?;
        } else if let Some(difference) = difference(&read(&file)?, &exports.listing()) {
            changed.push(format!("{}:\n{difference}", file.strip_prefix(root()).unwrap_or(&file).display()));
        }
    }
    println!("{:16} {total:5} exported names", "total");
    if !changed.is_empty() {
        bail!(
            "the public API differs from its listings:\n{}\nrun `cargo xtask public-api --update` if this is intended",
            changed.join("\n")
        );
    }
    Ok(())
}

/// Reads a listing; a missing file is an empty listing.
fn read(file: &Path) -> Result<String> {
    if !file.exists() {
        return Ok(String::new());
    }
    fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

fn write(file: &PathBuf, listing: &str) -> Result<()> {
    fs::create_dir_all(root().join(LISTINGS)).with_context(|| format!("cannot create {LISTINGS}"))?;
    fs::write(file, listing).with_context(|| format!("cannot write {}", file.display()))
}

/// Returns the lines that only one listing contains, if there are any.
fn difference(old: &str, new: &str) -> Option<String> {
    let only = |sign: &str, of: &str, other: &str| -> Vec<String> {
        let other: std::collections::HashSet<&str> = other.lines().collect();
        of.lines().filter(|line| !other.contains(line)).map(|line| format!("  {sign} {line}")).collect()
    };
    let mut lines = only("-", old, new);
    lines.extend(only("+", new, old));
    let hidden = lines.len().saturating_sub(MAX_LINES);
    lines.truncate(MAX_LINES);
    if hidden > 0 {
        lines.push(format!("  … and {hidden} more"));
    }
    (!lines.is_empty()).then(|| lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_shows_removed_and_added_lines() {
        assert_eq!(difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(difference("a\nb\n", "a\nc\n").unwrap(), "  - b\n  + c");
        let long: String = (0..100).map(|i| format!("{i}\n")).collect();
        assert!(difference("", &long).unwrap().ends_with("… and 60 more"));
    }
}
