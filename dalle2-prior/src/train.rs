//! Training of both priors.
//!
//! Everything random in a batch (timesteps, noise, dropped captions) comes from the seed it is drawn with, so a batch
//! is a pure function of (seed, step).

pub use crate::autoregressive::{AutoregressiveBatch, AutoregressiveLoss, AutoregressiveTask};
pub use crate::diffusion::{CAPTION_DROPOUT, PriorBatch, PriorLoss, PriorTask};
