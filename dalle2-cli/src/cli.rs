//! The subcommands and their dispatch.

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::edit::{inpaint, interpolate, text_diff, vary};
use crate::{
    clip_score, compare_priors, convert, embed, evaluate, generate, human_eval, inspect, make_webdataset, probe, report,
};

/// Generate and edit images with unCLIP models (DALL·E 2), and train, measure and convert them
#[derive(Debug, Parser)]
#[command(name = "dalle2", version, propagate_version = true, arg_required_else_help = true)]
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
    Evaluate(evaluate::Cli),
    ComparePriors(compare_priors::Cli),
    Embed(embed::Cli),
    Inspect(inspect::Cli),
    Convert(convert::Cli),
    Report(report::Cli),
    Probe(probe::Cli),
    HumanEval(human_eval::Cli),
    #[cfg(feature = "studio")]
    Studio(crate::studio::Cli),
    ClipScore(clip_score::Cli),
    MakeWebdataset(make_webdataset::Cli),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    match run(&Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result<()> {
    match command {
        Command::Generate(args) => generate::run(args),
        Command::Vary(args) => vary::run(args),
        Command::Interpolate(args) => interpolate::run(args),
        Command::TextDiff(args) => text_diff::run(args),
        Command::Inpaint(args) => inpaint::run(args),
        Command::Evaluate(args) => evaluate::run(args),
        Command::ComparePriors(args) => compare_priors::run(args),
        Command::Embed(args) => embed::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Report(args) => report::run(args),
        Command::Probe(args) => probe::run(args),
        Command::HumanEval(args) => human_eval::run(args),
        #[cfg(feature = "studio")]
        Command::Studio(args) => crate::studio::run(args),
        Command::ClipScore(args) => clip_score::run(args),
        Command::MakeWebdataset(args) => make_webdataset::run(args),
        Command::Completions { shell } => {
            clap_complete::generate(*shell, &mut Cli::command(), "dalle2", &mut std::io::stdout());
            Ok(())
        }
    }
}
