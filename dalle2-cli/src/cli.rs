//! The subcommands and their dispatch.

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::edit::{inpaint, interpolate, text_diff, vary};
use crate::outcome::report;
use crate::{clip_score, convert, generate, human_eval, inspect, make_webdataset, train, zero_shot};
#[cfg(feature = "emoji")]
use crate::{compare_priors, embed, evaluate, probe};

const EXAMPLES: &str = "Examples:
  dalle2 generate \"red apple\"
  dalle2 inpaint photo.png --mask mask.png --caption \"a hat\"
  dalle2 studio

Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted.";

/// Generate and edit images with unCLIP models (DALL·E 2), and train, measure and convert them
#[derive(Debug, Parser)]
#[command(name = "dalle2", version, propagate_version = true, arg_required_else_help = true, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Generate(generate::Cli),
    Vary(vary::Cli),
    Interpolate(interpolate::Cli),
    TextDiff(text_diff::Cli),
    Inpaint(inpaint::Cli),
    Train(train::Cli),
    #[cfg(feature = "emoji")]
    Evaluate(evaluate::Cli),
    #[cfg(feature = "emoji")]
    ComparePriors(compare_priors::Cli),
    #[cfg(feature = "emoji")]
    Embed(embed::Cli),
    Inspect(inspect::Cli),
    Convert(convert::Cli),
    Report(crate::report::Cli),
    #[cfg(feature = "emoji")]
    Probe(probe::Cli),
    HumanEval(human_eval::Cli),
    #[cfg(feature = "studio")]
    Studio(crate::studio::Cli),
    ClipScore(clip_score::Cli),
    ZeroShot(zero_shot::Cli),
    MakeWebdataset(make_webdataset::Cli),
    /// Print a completion script for a shell
    #[command(after_help = "Examples:\n  dalle2 completions bash > ~/.local/share/bash-completion/completions/dalle2")]
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    report(run(&Cli::parse().command))
}

fn run(command: &Command) -> Result<()> {
    match command {
        Command::Generate(args) => generate::run(args),
        Command::Vary(args) => vary::run(args),
        Command::Interpolate(args) => interpolate::run(args),
        Command::TextDiff(args) => text_diff::run(args),
        Command::Inpaint(args) => inpaint::run(args),
        Command::Train(args) => train::run(args),
        #[cfg(feature = "emoji")]
        Command::Evaluate(args) => evaluate::run(args),
        #[cfg(feature = "emoji")]
        Command::ComparePriors(args) => compare_priors::run(args),
        #[cfg(feature = "emoji")]
        Command::Embed(args) => embed::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Report(args) => crate::report::run(args),
        #[cfg(feature = "emoji")]
        Command::Probe(args) => probe::run(args),
        Command::HumanEval(args) => human_eval::run(args),
        #[cfg(feature = "studio")]
        Command::Studio(args) => crate::studio::run(args),
        Command::ClipScore(args) => clip_score::run(args),
        Command::ZeroShot(args) => zero_shot::run(args),
        Command::MakeWebdataset(args) => make_webdataset::run(args),
        Command::Completions { shell } => {
            clap_complete::generate(*shell, &mut Cli::command(), "dalle2", &mut std::io::stdout());
            Ok(())
        }
    }
}
