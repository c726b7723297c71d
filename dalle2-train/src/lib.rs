//! Training for `dalle2`: data sets, a trainer whose runs resume bit for bit, and recipes for every part.
//!
//! Start with [`recipes`] to train a part on your images, and with [`Trainer`] to train another model.
#![warn(unreachable_pub)]

#[cfg(feature = "cli")]
pub mod cli;
pub mod data;
pub mod recipes;
mod trainer;

pub use trainer::*;
