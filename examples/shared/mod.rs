//! What the examples share: their command line, their data and the hooks of their training runs.
#![allow(dead_code)] // every example uses a part of it

pub mod cli;
pub mod config;
pub mod data;
pub mod embed;
pub mod hooks;
pub mod priors;
