//! The `dalle2` command.
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]
#![allow(missing_docs, reason = "a program has no API")]

#[cfg(test)]
mod browser;
mod cli;
mod clip_score;
mod compare_priors;
mod convert;
mod edit;
mod embed;
#[path = "../../examples/shared/encoders.rs"]
mod encoders;
mod evaluate;
mod generate;
mod human_eval;
mod inspect;
mod make_webdataset;
mod probe;
mod report;
#[cfg(feature = "studio")]
mod studio;
mod webdataset;

use std::process::ExitCode;

fn main() -> ExitCode {
    dalle2::keep_memory();
    dalle2_train::cli::init_logging();
    cli::main()
}
