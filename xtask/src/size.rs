//! `cargo xtask size`: lines of Rust, long examples and long files, as numbers.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

use crate::command::root;
use crate::files::tracked;

/// Longest example, in lines.
const EXAMPLE: usize = 60;
/// Longest file without its tests, in lines.
const FILE: usize = 400;

/// Prints the lines of Rust per folder and the files that exceed their limits.
pub fn run_all() -> Result<()> {
    let mut folders: BTreeMap<String, usize> = BTreeMap::new();
    let (mut examples, mut files) = (Vec::new(), Vec::new());
    for file in tracked(&["rs"])? {
        let text = fs::read_to_string(root().join(&file)).with_context(|| format!("cannot read {file}"))?;
        let lines = text.lines().count();
        let folder = file.split_once('/').map_or("", |(folder, _)| folder).to_owned();
        *folders.entry(folder).or_default() += lines;
        if is_example(&file) && lines > EXAMPLE {
            examples.push(format!("{lines:6}   {file}"));
        }
        let code = without_tests(&text);
        if code > FILE && !is_test(&file) {
            files.push(format!("{code:6}   {file}"));
        }
    }
    println!("{:6} lines of Rust", folders.values().sum::<usize>());
    folders.iter().for_each(|(folder, lines)| println!("{lines:6}   {folder}"));
    println!("{:6} examples over {EXAMPLE} lines", examples.len());
    examples.iter().for_each(|line| println!("{line}"));
    println!("{:6} files over {FILE} lines without tests", files.len());
    files.iter().for_each(|line| println!("{line}"));
    Ok(())
}

/// Whether a file belongs to the examples of the facade.
fn is_example(file: &str) -> bool {
    file.starts_with("examples/") && !file.starts_with("examples/emoji/")
}

fn is_test(file: &str) -> bool {
    file.starts_with("tests/") || file.contains("/tests/") || file.contains("tests.rs")
}

/// Returns the number of lines before the test module.
fn without_tests(text: &str) -> usize {
    text.lines().take_while(|line| line.trim() != "#[cfg(test)]").count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_module_does_not_count() {
        assert_eq!(without_tests("a\nb\n#[cfg(test)]\nmod tests {}\n"), 2);
    }

    #[test]
    fn the_emoji_crate_is_not_an_example() {
        assert!(is_example("examples/generate.rs"));
        assert!(!is_example("examples/emoji/src/lib.rs") && !is_example("src/lib.rs"));
    }
}
