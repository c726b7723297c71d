//! Training for `dalle2`: data sets, and a step-based trainer whose runs resume bit for bit.

pub mod data;
mod trainer;

pub use trainer::*;
