//! The steps of `cargo xtask check`.

use std::time::Instant;

use anyhow::Result;

use crate::command::{cargo, run};
use crate::deny::{self, Deny};
use crate::prose::{self, Prose};
use crate::public_api::{self, PublicApi};
use crate::size;

/// Features off by default that are checked and documented.
const FEATURES: [&str; 2] = ["--features", "dalle2/hub,dalle2-train/parquet,dalle2-train/tui"];
/// The tests' features: the dashboard would compile Burn's training crates and is not tested.
const TESTED: [&str; 2] = ["--features", "dalle2/hub,dalle2-train/parquet"];
/// Tests that compare with another implementation.
const PARITY: [&str; 8] =
    ["test", "--workspace", "--test", "parity", "--test", "diffusion_parity", "--test", "diffusers"];

pub fn check() -> Result<()> {
    let start = Instant::now();
    // The quick steps first. Clippy and rustdoc share the dependencies' metadata.
    for step in [fmt, numbers, public_api, deny, clippy, test, doc] {
        step()?;
    }
    println!("\nall checks passed in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

pub fn fmt() -> Result<()> {
    run(cargo(&["fmt", "--all", "--check"]))
}

/// Prints the counts that do not fail.
fn numbers() -> Result<()> {
    println!("\n$ cargo xtask size");
    size::run_all()?;
    println!("\n$ cargo xtask prose");
    prose::run_all(&Prose::default())
}

fn public_api() -> Result<()> {
    println!("\n$ cargo xtask public-api");
    public_api::run_all(&PublicApi::default())
}

fn deny() -> Result<()> {
    println!("\n$ cargo xtask deny");
    deny::run_all(&Deny::default())
}

pub fn clippy() -> Result<()> {
    let arguments = [&["clippy", "--workspace", "--all-targets"][..], &FEATURES, &["--", "-D", "warnings"]];
    run(cargo(&arguments.concat()))
}

pub fn test() -> Result<()> {
    run(cargo(&[&["test", "--workspace"][..], &TESTED].concat()))?;
    // Again with Burn's own operations in place of the kernels; the property tests compare the two.
    let skipped = ["--lib", "--", "--skip", "property_tests::"];
    let mut without_kernels = cargo(&[&PARITY[..], &TESTED, &skipped[..]].concat());
    without_kernels.env("DALLE2_KERNELS", "off");
    run(without_kernels)?;
    // And built without the kernels: only the crates of this workspace are compiled again.
    run(cargo(&[&PARITY[..], &["--no-default-features", "--features", "flex"]].concat()))
}

pub fn doc() -> Result<()> {
    // Clippy's features, so that no dependency is checked again.
    let mut command = cargo(&[&["doc", "--workspace", "--no-deps"][..], &FEATURES].concat());
    command.env("RUSTDOCFLAGS", "-D warnings");
    run(command)
}
