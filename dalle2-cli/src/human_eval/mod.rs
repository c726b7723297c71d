//! Human evaluation of two models by photorealism, caption similarity and diversity, as in the paper (arXiv 2204.06125,
//! section 5.2).
//!
//! `docs/human-evaluation.md` is the guide.

mod answers;
mod folder;
mod generate;
mod make;
mod score;
mod study;

#[cfg(test)]
mod browser_tests;
#[cfg(test)]
mod tests;

use anyhow::Result;
use clap::{Args, Subcommand};

const EXAMPLES: &str = "Examples:
  dalle2 human-eval generate --model models/emoji --captions captions.txt --out out/a
  dalle2 human-eval generate --model runs/mine/export --captions captions.txt --out out/b
  dalle2 human-eval make --a out/a --b out/b --captions captions.txt --out out/study
  dalle2 human-eval score --key out/study/key.json answers-*.json";

/// Compare two models by human judgement
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Generate the images of a list of captions into a folder for `make`
    #[command(alias = "draw")]
    Generate(generate::Args),
    /// Write the page for the raters, and the key that maps images to models
    Make(make::Args),
    /// Compute win rates with 95 % intervals from the raters' answers
    Score(score::Args),
}

pub fn run(cli: &Cli) -> Result<()> {
    match &cli.task {
        Task::Generate(args) => generate::run(args),
        Task::Make(args) => make::run(args),
        Task::Score(args) => score::run(args),
    }
}
