//! A studio in the browser: generate, vary, interpolate, change by text, inpaint and mix, on this machine alone.
//!
//! ```text
//! cargo run --release --example studio
//! ```
//!
//! `docs/studio.md` is the guide.

mod events;
mod failure;
mod guard;
mod limits;
mod model;
mod page;
mod pictures;
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

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use dalle2::Pipeline;

/// Open a studio in the browser, for this machine alone.
#[derive(Debug, Parser)]
pub struct Cli {
    /// Pipeline directory
    #[arg(long, value_name = "DIR", default_value = "models/emoji")]
    model: PathBuf,
    /// Port on 127.0.0.1; 0 takes any that is free
    #[arg(long, default_value_t = 8204)]
    port: u16,
    /// Device: default, flex, cuda:0, wgpu, …
    #[arg(long, default_value = "default")]
    device: String,
}

pub fn run(cli: &Cli) -> Result<()> {
    // Before the model is loaded, which may take long.
    let listener = server::bind(cli.port)?;
    let pipeline = Pipeline::from_pretrained(&cli.model, &dalle2::device(&cli.device)?)?;
    println!("http://{}/ shows the studio; Ctrl-C ends it", listener.local_addr()?);
    server::serve(pipeline, cli.model.display().to_string(), listener, interrupted())?;
    println!("ended");
    Ok(())
}

/// Ends when Ctrl-C is pressed.
async fn interrupted() {
    if tokio::signal::ctrl_c().await.is_err() {
        // Without a handler Ctrl-C ends the program at once.
        std::future::pending::<()>().await;
    }
}
