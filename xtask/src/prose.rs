//! `cargo xtask prose`: long lines of the pages and unclear phrases of the tree, as numbers.
//!
//! The phrases are idioms with a plainer standard term; a hit is a sentence to look at, not an error.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::Args;

use crate::command::root;
use crate::files::tracked;

/// Columns beyond which a line of a page counts as long, and as very long.
const WIDTHS: [usize; 2] = [120, 160];

/// The phrases to count.
const PHRASES: &str = include_str!("phrases.txt");
const HEADLINE: &str = "headline \"What …\"";
const TRUE_ARM: &str = "match arm `true =>`";

#[derive(Debug, Clone, Default, Args)]
pub struct Prose {
    /// Prints up to N places of each kind
    #[arg(long, value_name = "N", default_value_t = 0)]
    show: usize,
}

/// Prints the counts.
pub fn run_all(options: &Prose) -> Result<()> {
    let phrases = phrases();
    let names = phrases.iter().map(|(name, _)| *name).chain([HEADLINE, TRUE_ARM]);
    let mut counts: Vec<Count> = names.map(Count::new).collect();
    let mut long = WIDTHS.map(|_| Count::new(""));
    for file in tracked(&["rs", "md", "toml", "html", "js"])? {
        let text = fs::read_to_string(root().join(&file)).with_context(|| format!("cannot read {file}"))?;
        for (number, line) in text.lines().enumerate() {
            let place = || format!("{file}:{}: {}", number + 1, line.trim().chars().take(100).collect::<String>());
            for (count, (_, phrases)) in counts.iter_mut().zip(&phrases) {
                count.add(phrases.iter().map(|phrase| occurrences(line, phrase)).sum(), place);
            }
            let at = phrases.len();
            counts[at].add(usize::from(is_headline(line)), place);
            counts[at + 1].add(usize::from(line.trim_start().starts_with("true =>")), place);
            if is_page(&file) {
                for (count, width) in long.iter_mut().zip(WIDTHS) {
                    count.add(usize::from(line.chars().count() > width), place);
                }
            }
        }
    }
    for (count, width) in long.iter().zip(WIDTHS) {
        println!("{:6} lines over {width} columns in README, ARCHITECTURE and docs", count.number);
        count.show(options.show);
    }
    println!("{:6} phrases to rewrite", counts.iter().map(|count| count.number).sum::<usize>());
    counts.sort_by_key(|count| std::cmp::Reverse(count.number));
    for count in counts.iter().filter(|count| count.number > 0) {
        println!("{:6}   {}", count.number, count.name);
        count.show(options.show);
    }
    Ok(())
}

/// Returns the names of the kinds with their phrases.
fn phrases() -> Vec<(&'static str, Vec<&'static str>)> {
    let lines = PHRASES.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| line.split_once(" = "))
        .map(|(name, phrases)| (name, phrases.split("; ").collect()))
        .collect()
}

/// Occurrences of one kind.
struct Count {
    name: &'static str,
    number: usize,
    places: Vec<String>,
}

impl Count {
    fn new(name: &'static str) -> Self {
        Self { name, number: 0, places: Vec::new() }
    }

    fn add(&mut self, number: usize, place: impl Fn() -> String) {
        if number > 0 {
            self.number += number;
            self.places.push(place());
        }
    }

    fn show(&self, limit: usize) {
        self.places.iter().take(limit).for_each(|place| println!("           {place}"));
    }
}

/// Whether lines of a file count as lines of a page.
fn is_page(file: &str) -> bool {
    let path = Path::new(file);
    let in_docs = file.starts_with("docs/") && path.extension().is_some_and(|extension| extension == "md");
    in_docs || file == "README.md" || file == "ARCHITECTURE.md"
}

/// Whether a heading or a documentation comment begins with "What".
fn is_headline(line: &str) -> bool {
    let line = line.trim_start();
    let text =
        line.strip_prefix("///").or_else(|| line.strip_prefix("//!")).unwrap_or_else(|| line.trim_start_matches('#'));
    text.len() < line.len() && text.trim_start().starts_with("What ")
}

/// Counts a phrase in a line. A phrase does not match across punctuation.
fn occurrences(line: &str, phrase: &str) -> usize {
    let groups: Vec<Vec<&str>> = phrase.split(' ').map(|group| group.split('|').collect()).collect();
    let words = words(line);
    let matches = |window: &[(usize, &str)]| {
        let adjacent = window.windows(2).all(|pair| pair[0].0 + pair[0].1.len() + 1 == pair[1].0);
        adjacent && window.iter().zip(&groups).all(|((_, word), group)| group.contains(word))
    };
    let adjacent_by_space = |window: &[(usize, &str)]| {
        window.windows(2).all(|pair| line.as_bytes().get(pair[1].0 - 1).is_some_and(|byte| b" '".contains(byte)))
    };
    words.windows(groups.len()).filter(|window| matches(window) && adjacent_by_space(window)).count()
}

/// Returns the words of a line with their positions; an underscore joins words.
fn words(line: &str) -> Vec<(usize, &str)> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut words = Vec::new();
    let mut start = None;
    for (at, c) in line.char_indices().chain([(line.len(), ' ')]) {
        match (is_word(c), start) {
            (true, None) => start = Some(at),
            (false, Some(from)) => {
                words.push((from, &line[from..at]));
                start = None;
            }
            _ => {}
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phrases_match_words_that_follow_each_other() {
        let phrase = "is|are red|green";
        assert_eq!(occurrences("it is red, and they are green: is. red", phrase), 2);
        assert_eq!(occurrences("this red; is reddish; is_red", phrase), 0);
        assert_eq!(occurrences("let mut run = Task::run(run_x)", "run"), 2);
        assert_eq!(occurrences("one's red: of one's red", "of one s red"), 1);
        assert_eq!(phrases().len(), 15);
    }

    #[test]
    fn headlines_are_headings_and_comments() {
        for line in ["## What it takes", "    /// What a filter says.", "//! What is here"] {
            assert!(is_headline(line), "{line}");
        }
        for line in ["What now", "/// Whatever", "// What"] {
            assert!(!is_headline(line), "{line}");
        }
    }

    #[test]
    fn pages_are_the_readme_the_architecture_and_the_docs() {
        assert!(is_page("README.md") && is_page("docs/speed.md") && is_page("ARCHITECTURE.md"));
        assert!(!is_page("docs/public-api/dalle2.txt") && !is_page("models/emoji/README.md"));
    }
}
