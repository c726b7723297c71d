//! `cargo xtask asan`: the tests of the unsafe code under AddressSanitizer, on a nightly toolchain.

use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::command::{output, root, run};

/// Modules of `dalle2-kernels` whose tests exercise unsafe code.
const MODULES: [&str; 2] = ["kernels::cpu::raw::", "pool::"];
/// The sanitizer, without overflow checks: the instrumented kernels keep the loops of a release build.
const FLAGS: &str = "-Zsanitizer=address -Coverflow-checks=off";

#[derive(Debug, Clone, Args)]
pub struct Asan {
    /// Toolchain with the sanitizer
    #[arg(long, value_name = "NAME", default_value = "nightly")]
    toolchain: String,
}

/// Builds and runs the tests in a separate target directory.
pub fn run_all(options: &Asan) -> Result<()> {
    let host = host(&options.toolchain)?;
    let mut command = rustup(&options.toolchain, "cargo");
    // `--target` limits the flags to the tested program: build scripts and macros run without the sanitizer.
    command.args(["test", "--package", "dalle2-kernels", "--lib", "--target", &host, "--target-dir", "target/asan"]);
    command.arg("--").args(MODULES);
    // The pool's threads live until the process ends, so what they own is no leak.
    command.env("RUSTFLAGS", FLAGS).env("ASAN_OPTIONS", "detect_leaks=0").env("CARGO_INCREMENTAL", "0");
    run(command)
}

/// Returns the host triple of a toolchain.
fn host(toolchain: &str) -> Result<String> {
    let mut command = rustup(toolchain, "rustc");
    command.arg("-vV");
    let text = output(command).with_context(|| format!("is `rustup toolchain install {toolchain}` needed?"))?;
    let text = String::from_utf8(text)?;
    match text.lines().find_map(|line| line.strip_prefix("host: ")) {
        Some(host) => Ok(host.to_owned()),
        None => bail!("`rustc -vV` of {toolchain} printed no host: {text}"),
    }
}

/// Returns a program of a toolchain, without the variables of the cargo that started this program.
fn rustup(toolchain: &str, program: &str) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", toolchain, program]).current_dir(root());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") || text == "CARGO" {
            command.env_remove(&name);
        }
    }
    command
}
