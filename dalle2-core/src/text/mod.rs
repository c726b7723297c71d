//! Captions to tokens: the text clean-up and the byte-pair tokenizer of CLIP.
//!
//! [`ClipTokenizer::openai`] carries the published vocabulary in the crate and reproduces the original's ids exactly;
//! [`ClipTokenizer::from_dir`] reads the vocabulary that lies beside a downloaded model.

mod clean;
mod files;
mod merges;
mod tokenizer;

pub use clean::clean;
pub use tokenizer::{ClipTokenizer, END, PadWith, START};
