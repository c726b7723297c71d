//! Asks people which of two models draws better: photorealism, caption similarity and diversity, as in the paper
//! (arXiv 2204.06125, section 5.2).
//!
//! ```text
//! cargo run --release --example human_eval -- draw  --model models/emoji --captions captions.txt --out out/a
//! cargo run --release --example human_eval -- draw  --model runs/mine/export --captions captions.txt --out out/b
//! cargo run --release --example human_eval -- make  --a out/a --b out/b --captions captions.txt --out out/study
//! cargo run --release --example human_eval -- score --key out/study/key.json answers-*.json
//! ```
//!
//! `docs/human-evaluation.md` is the guide.

mod answers;
mod draw;
mod folder;
mod make;
mod score;
mod study;

#[cfg(test)]
mod browser_tests;
#[cfg(test)]
mod tests;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Compare two models by asking people.
#[derive(Debug, Parser)]
pub struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Draw the images of a list of captions into a folder, as `make` reads them
    Draw(draw::Args),
    /// Write the page for the raters, and the key that says which picture came from where
    Make(make::Args),
    /// Win rates with 95 % intervals from the raters' answers
    Score(score::Args),
}

pub fn run(cli: &Cli) -> Result<()> {
    match &cli.task {
        Task::Draw(args) => draw::run(args),
        Task::Make(args) => make::run(args),
        Task::Score(args) => score::run(args),
    }
}
