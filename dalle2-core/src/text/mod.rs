//! CLIP's text clean-up and byte-pair tokenizer.
//!
//! [`ClipTokenizer::openai`] is the published tokenizer, embedded in the crate, with the ids of the original;
//! [`ClipTokenizer::from_dir`] reads the tokenizer of a model directory.

mod clean;
mod entities;
mod files;
mod merges;
mod tokenizer;
mod vocabulary;

pub use clean::clean;
pub use tokenizer::{ClipTokenizer, END, PadWith, START, TruncatedTokens};
