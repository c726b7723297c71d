//! The steps of `cargo xtask check`.

use std::time::Instant;

use anyhow::Result;

use crate::command::{cargo, run};

/// Tests that compare with another implementation.
const PARITY: [&str; 8] =
    ["test", "--workspace", "--test", "parity", "--test", "diffusion_parity", "--test", "diffusers"];

pub fn check() -> Result<()> {
    let start = Instant::now();
    // The quick steps first. Clippy and rustdoc share the dependencies' metadata.
    for step in [fmt, clippy, test, doc] {
        step()?;
    }
    println!("\nall checks passed in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

pub fn fmt() -> Result<()> {
    run(cargo(&["fmt", "--all", "--check"]))
}

pub fn clippy() -> Result<()> {
    run(cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}

pub fn test() -> Result<()> {
    run(cargo(&["test", "--workspace"]))?;
    // Again with Burn's own operations in place of the kernels.
    let mut without_kernels = cargo(&PARITY);
    without_kernels.env("DALLE2_KERNELS", "off");
    run(without_kernels)?;
    // And built without the kernels: only the crates of this workspace are compiled again.
    let features = ["--no-default-features", "--features", "flex"];
    run(cargo(&[&PARITY[..], &features[..]].concat()))?;
    // Burn's activations and norms overflow where the kernels' property tests expect a value, so those are skipped.
    let operations = ["--", "tests::", "property_tests::cast_weights", "--skip", "property_tests::"];
    run(cargo(&[&["test", "--package", "dalle2-kernels", "--lib"][..], &features[..], &operations[..]].concat()))
}

pub fn doc() -> Result<()> {
    // The features of the tests, so that no dependency is built again.
    let mut command =
        cargo(&["doc", "--workspace", "--no-deps", "--features", "dalle2/hub,dalle2-train/tui,dalle2-train/parquet"]);
    command.env("RUSTDOCFLAGS", "-D warnings");
    run(command)
}
