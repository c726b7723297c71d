//! The contract between a model, its batches and a trainer.
//!
//! A task is a module with a loss; a batch is a pure function of (seed, step). The trainer itself is the crate
//! `dalle2-train`.

mod activations;
mod prepare;
mod source;
mod task;
mod threads;

pub use activations::kept_by_transformer;
pub use prepare::materialize;
pub use source::{BatchSource, mix_seed, step_rng};
pub use task::{StepGradients, StepOutput, TrainTask};
pub use threads::{DeviceThreads, panic_message};
