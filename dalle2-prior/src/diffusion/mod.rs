//! The diffusion prior.

mod config;
mod network;
mod prefix;
mod prior;
#[cfg(feature = "train")]
pub mod train;

pub use config::{DiffusionPriorConfig, XStartBound};
pub use network::PriorNetwork;
pub use prefix::Prefix;
pub use prior::DiffusionPrior;
