//! The `dalle2` command.
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]
#![allow(missing_docs, reason = "a program without a library")]

mod args;
#[cfg(test)]
mod browser;
mod cli;
mod clip_score;
#[cfg(feature = "emoji")]
mod compare_priors;
mod convert;
mod edit;
#[cfg(feature = "emoji")]
mod embed;
mod encoders;
#[cfg(feature = "emoji")]
mod evaluate;
mod generate;
mod human_eval;
mod inspect;
mod interrupt;
mod make_webdataset;
mod outcome;
#[cfg(feature = "emoji")]
mod probe;
mod progress;
mod report;
#[cfg(feature = "studio")]
mod studio;
mod train;
mod webdataset;
mod zero_shot;

use std::process::ExitCode;

fn main() -> ExitCode {
    dalle2::keep_memory();
    init_logging();
    cli::main()
}

/// Logs warnings to standard error, or what `RUST_LOG` selects.
fn init_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,dalle2_train=info,dalle2_emoji=info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_writer(std::io::stderr).init();
}
