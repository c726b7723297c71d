//! CLIPs that others have trained: Hugging Face directories, OpenAI's files, open_clip checkpoints.

mod config;
mod openai;
mod presets;
mod tower;
mod whole;

pub use whole::{ImportOptions, PretrainedClip};
