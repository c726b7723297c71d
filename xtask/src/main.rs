//! The checks that CI runs and that a person runs: `cargo xtask check`.
//!
//! Each command is printed before it runs and with its seconds afterwards. The first failure ends the program.
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

mod asan;
mod check;
mod command;
mod deny;
mod files;
mod package;
mod peer;
mod profile;
mod program;
mod prose;
mod public_api;
mod size;
mod tools;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Checks of the dalle2 workspace.
#[derive(Debug, Parser)]
#[command(name = "xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Clone, Subcommand)]
enum Task {
    /// The tests of the unsafe code under AddressSanitizer; needs a nightly toolchain
    Asan(asan::Asan),
    /// Everything that must hold before a merge
    Check,
    /// The formatting of every crate; changes nothing
    Fmt,
    /// Licences, sources and banned crates of the dependencies, by cargo-deny; skipped where it is not installed
    Deny(deny::Deny),
    /// Clippy over all targets, warnings denied
    Clippy,
    /// All unit, integration and documentation tests
    Test,
    /// The API documentation, warnings and broken links denied
    Doc,
    /// The published crates: files and sizes
    Package,
    /// Every component and two generations of a checkpoint compared with recordings of the reference implementation
    Parity(tools::Forwarded),
    /// Operations, training steps or a generation compared with PyTorch
    Peer(peer::Peer),
    /// The share of each operation in a generation's time, by stage; needs Linux and perf
    Profile(profile::Profile),
    /// Long lines of the pages and phrases to rewrite, as numbers
    Prose(prose::Prose),
    /// The exported names of every library, compared with docs/public-api
    PublicApi(public_api::PublicApi),
    /// An unCLIP checkpoint with random weights in the layout of diffusers
    RandomCheckpoint(tools::Forwarded),
    /// Lines of Rust, long examples and long files, as numbers
    Size,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Asan(options) => asan::run_all(&options),
        Task::Check => check::check(),
        Task::Deny(options) => deny::run_all(&options),
        Task::Fmt => check::fmt(),
        Task::Clippy => check::clippy(),
        Task::Test => check::test(),
        Task::Doc => check::doc(),
        Task::Package => package::run_all(),
        Task::Parity(arguments) => arguments.run_all("parity"),
        Task::Peer(peer) => peer::run_all(&peer),
        Task::Profile(profile) => profile::run_all(&profile),
        Task::Prose(options) => prose::run_all(&options),
        Task::PublicApi(options) => public_api::run_all(&options),
        Task::RandomCheckpoint(arguments) => arguments.run_all("random-checkpoint"),
        Task::Size => size::run_all(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
