//! Products with bf16 weights by AMX and AVX-512 BF16 instructions.
//!
//! The input is rounded to bf16 and packed into rows of channel pairs: one row per pair, one column per position, which is
//! a pixel of the padded images or a row of a matrix. A tap of a convolution is an offset into these rows. Positions
//! between the end of an image row and the next are computed and discarded.

mod blocks;
mod convert;
mod images;
mod rows;
#[cfg(test)]
mod tests;

pub(crate) use blocks::instructions;
pub(crate) use convert::{Rows, cast_to_16_bits, cast_to_f32};
pub(crate) use images::convolution;
pub(crate) use rows::linear;
