//! `cargo xtask deny`: cargo-deny with `deny.toml`.

use anyhow::Result;
use clap::Args;

use crate::command::{cargo, output, run};

#[derive(Debug, Clone, Default, Args)]
pub struct Deny {
    /// Also checks advisories, which needs the network
    #[arg(long)]
    advisories: bool,
}

/// Checks licences, bans and sources, or reports that cargo-deny is not installed.
pub fn run_all(options: &Deny) -> Result<()> {
    if output(cargo(&["deny", "--version"])).is_err() {
        println!("skipped: cargo-deny is not installed; `cargo install --locked cargo-deny`");
        return Ok(());
    }
    if options.advisories {
        run(cargo(&["deny", "check", "advisories"]))?;
    }
    run(cargo(&["deny", "--offline", "check", "licenses", "bans", "sources"]))
}
