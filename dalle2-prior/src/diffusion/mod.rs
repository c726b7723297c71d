//! The diffusion prior.

mod config;
mod config_file;
mod network;
mod prefix;
mod prior;
mod train;

pub use config::DiffusionPriorConfig;
pub use network::PriorNetwork;
pub use prefix::Prefix;
pub use prior::DiffusionPrior;
pub use train::{CAPTION_DROPOUT, PriorBatch, PriorLoss, PriorTask};
