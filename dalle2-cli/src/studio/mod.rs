//! A studio in the browser on this machine: generate, vary, interpolate, text diff, inpaint and mix.
//!
//! `docs/studio.md` is the guide.

mod events;
mod failure;
mod gallery;
mod guard;
mod limits;
mod model;
mod page;
mod queue;
mod server;
mod task;
mod worker;

#[cfg(test)]
mod browser_tests;
#[cfg(test)]
mod client;
#[cfg(test)]
mod tests;

use anyhow::Result;
use clap::Args;

use crate::args::ModelArgs;

const EXAMPLES: &str = "Examples:
  dalle2 studio
  dalle2 studio --model runs/emoji/export --port 0";

/// Serve a studio for the browser on this machine
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Cli {
    /// Port on 127.0.0.1; 0 chooses a free one
    #[arg(long, default_value_t = 8204)]
    port: u16,
    #[command(flatten)]
    model: ModelArgs,
}

pub fn run(cli: &Cli) -> Result<()> {
    // Binds first, since loading the model may take long.
    let listener = server::bind(cli.port)?;
    let pipeline = cli.model.load()?;
    println!("http://{}/ serves the studio; Ctrl-C stops it", listener.local_addr()?);
    server::serve(pipeline, cli.model.name(), listener, interrupted())?;
    println!("stopped");
    Ok(())
}

/// Completes on Ctrl-C.
async fn interrupted() {
    if tokio::signal::ctrl_c().await.is_err() {
        // Without a handler, Ctrl-C ends the program at once.
        std::future::pending::<()>().await;
    }
}
