//! The autoregressive prior.

mod config;
mod network;
mod prior;
mod quantizer;
mod sampling;
mod train;

pub use config::AutoregressivePriorConfig;
pub use network::{AutoregressiveNetwork, AutoregressiveState};
pub use prior::AutoregressivePrior;
pub use quantizer::{EmbeddingQuantizer, QuantizerOptions};
pub use train::{AutoregressiveBatch, AutoregressiveLoss, AutoregressiveTask};
