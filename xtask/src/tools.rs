//! Forwards the commands that compute with the library to the crate `xtask/tools`.

use std::ffi::OsString;

use anyhow::Result;
use clap::Args;

use crate::command::{cargo, root, run};

/// Arguments that are passed on; the other program parses them and prints their help.
#[derive(Debug, Clone, Args)]
#[command(disable_help_flag = true)]
pub struct Forwarded {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    arguments: Vec<OsString>,
}

impl Forwarded {
    pub fn run_all(&self, name: &str) -> Result<()> {
        run_all(name, &self.arguments)
    }
}

/// Builds the program with optimisations and runs its command `name` in the caller's directory.
pub fn run_all(name: &str, arguments: &[OsString]) -> Result<()> {
    let mut command = cargo(&["run", "--release", "--quiet", "--package", "dalle2-tools", "--manifest-path"]);
    command.arg(root().join("Cargo.toml")).current_dir(std::env::current_dir()?);
    command.args(["--", name]).args(arguments);
    run(command)
}
