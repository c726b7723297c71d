//! The checks that CI runs and that a person runs: `cargo xtask check`.
//!
//! Every command is printed before it runs, with the seconds it took afterwards; the first one that fails ends the run.
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

mod package;
mod peer;
mod profile;
mod program;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail};
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
    /// The published crates: what they hold and how large they are
    Package,
    /// Operations, training steps or a generation beside PyTorch
    Peer(peer::Peer),
    /// Which operations a generation spends its time in, by stage; needs Linux and perf
    Profile(profile::Profile),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Check => check(),
        Task::Fmt => fmt(),
        Task::Clippy => clippy(),
        Task::Test => test(),
        Task::Doc => doc(),
        Task::Package => package::run_all(),
        Task::Peer(peer) => peer::run_all(&peer),
        Task::Profile(profile) => profile::run_all(&profile),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check() -> Result<()> {
    let start = Instant::now();
    // The quick answers first. Clippy and rustdoc read the dependencies' metadata, which is built once for both.
    for step in [fmt, clippy, test, doc] {
        step()?;
    }
    println!("\nall checks passed in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

fn fmt() -> Result<()> {
    run(cargo(&["fmt", "--all", "--check"]))
}

fn clippy() -> Result<()> {
    run(cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}

fn test() -> Result<()> {
    run(cargo(&["test", "--workspace"]))?;
    // Everything that is compared with another implementation once more, by Burn's own operations.
    let parity = ["test", "--workspace", "--test", "parity", "--test", "diffusion_parity", "--test", "diffusers"];
    let mut switched_off = cargo(&parity);
    switched_off.env("DALLE2_KERNELS", "off");
    run(switched_off)?;
    // And built without them, beside the tests of the operations. Only the crates of this workspace are compiled again.
    let left_out = ["--no-default-features", "--features", "flex"];
    run(cargo(&[&parity[..], &left_out[..]].concat()))?;
    // Burn's activations and norms overflow where the kernels' property tests ask for a value, so those are left out.
    let operations = ["--", "tests::", "property_tests::narrow", "--skip", "property_tests::"];
    run(cargo(&[&["test", "--package", "dalle2-kernels", "--lib"][..], &left_out[..], &operations[..]].concat()))
}

fn doc() -> Result<()> {
    // The same features as the tests have, so that the training modules are documented and no dependency is built anew.
    let mut command =
        cargo(&["doc", "--workspace", "--no-deps", "--features", "dalle2/hub,dalle2-train/tui,dalle2-train/parquet"]);
    command.env("RUSTDOCFLAGS", "-D warnings");
    run(command)
}

/// The cargo that started this program, in the workspace's root.
fn cargo(arguments: &[&str]) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(arguments).current_dir(root());
    // `cargo xtask` describes this package in these variables; build scripts that watch them would run anew each time.
    let outer = std::env::vars_os().map(|(name, _)| name);
    let outer = outer.filter(|name| {
        let name = name.to_string_lossy();
        name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
    });
    outer.for_each(|name| {
        command.env_remove(name);
    });
    command
}

/// The workspace's folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs a command to its end and prints its time.
fn run(mut command: Command) -> Result<()> {
    let line = line(&command);
    println!("\n$ {line}");
    let start = Instant::now();
    let status = command.status().with_context(|| format!("cannot start `{line}`"))?;
    let seconds = start.elapsed().as_secs_f64();
    if !status.success() {
        bail!("`{line}` failed after {seconds:.1} s ({status})");
    }
    println!("= {seconds:.1} s: {line}");
    Ok(())
}

/// The command as a person would type it.
fn line(command: &Command) -> String {
    let variables = command.get_envs().filter_map(|(name, value)| {
        let value = value?.to_string_lossy();
        Some(format!("{}={}", name.to_string_lossy(), quoted(&value)))
    });
    let program = Path::new(command.get_program());
    let program = quoted(&program.file_name().unwrap_or_default().to_string_lossy());
    let arguments = command.get_args().map(|argument| quoted(&argument.to_string_lossy()));
    variables.chain([program]).chain(arguments).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    match word.contains(' ') {
        true => format!("'{word}'"),
        false => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_print_as_they_are_typed() {
        let mut command = cargo(&["doc", "--no-deps"]);
        command.env("RUSTDOCFLAGS", "-D warnings");
        assert_eq!(line(&command), "RUSTDOCFLAGS='-D warnings' cargo doc --no-deps");
    }

    #[test]
    fn a_command_that_fails_is_an_error_that_names_it() {
        let error = run(cargo(&["no-such-command-as-this"])).unwrap_err().to_string();
        assert!(error.contains("cargo no-such-command-as-this"), "{error}");
    }
}
