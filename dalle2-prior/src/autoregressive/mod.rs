//! The autoregressive prior.

mod config;
mod network;
mod prior;
mod quantizer;
mod sampling;
#[cfg(feature = "train")]
mod train;

pub use config::AutoregressivePriorConfig;
pub use network::{AutoregressiveNetwork, AutoregressiveState};
pub use prior::AutoregressivePrior;
pub use quantizer::{EmbeddingQuantizer, QuantizerOptions};
#[cfg(feature = "train")]
pub use train::{AutoregressiveBatch, AutoregressiveLoss, AutoregressiveTask};
