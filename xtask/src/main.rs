//! The checks that CI runs and that a person runs: `cargo xtask check`.
//!
//! Each command is printed before it runs and with its seconds afterwards. The first failure ends the program.
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

mod check;
mod command;
mod package;
mod peer;
mod profile;
mod program;
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
    /// Everything that must hold before a merge: fmt, clippy, test, doc
    Check,
    /// The formatting of every crate; changes nothing
    Fmt,
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
    /// An unCLIP checkpoint with random weights in the layout of diffusers
    RandomCheckpoint(tools::Forwarded),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Check => check::check(),
        Task::Fmt => check::fmt(),
        Task::Clippy => check::clippy(),
        Task::Test => check::test(),
        Task::Doc => check::doc(),
        Task::Package => package::run_all(),
        Task::Parity(arguments) => arguments.run_all("parity"),
        Task::Peer(peer) => peer::run_all(&peer),
        Task::Profile(profile) => profile::run_all(&profile),
        Task::RandomCheckpoint(arguments) => arguments.run_all("random-checkpoint"),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
