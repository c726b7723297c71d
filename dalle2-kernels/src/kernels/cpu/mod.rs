//! The kernels for the backend `Flex`.
//!
//! `entry`, `ops`, `bf16_ops`, `autodiff` and `conv` use Burn's types; the other modules work on slices.

mod attention;
mod autodiff;
mod bf16;
mod bf16_ops;
mod conv;
mod elementwise;
mod entry;
mod math;
mod norm;
mod ops;
mod panels;
mod parallel;
mod planes;
mod raw;
mod rows;
mod scratch;
mod unfold;
mod winograd;

pub(crate) use entry::{
    activation, attention, cast_to_16_bits, cast_to_f32, concat, conv_bf16, convolution, embedding, group_norm,
    layer_norm, linear, linear_add, linear_bf16, multiplies_bf16, swap_middle,
};
pub use raw::configure_allocator;

use super::{Elementwise, WeightShape};
