//! CPU kernels in f32 with hand-written gradients.
//!
//! Burn's CPU backend computes activations in scalar code, composes group normalisation of ten passes over memory, and
//! computes weight gradients of convolutions as thin matrix products. Here activations and norms are single passes,
//! vectorised for the processor at run time (`macerator`) and multi-threaded. 3 × 3 convolutions and attention use the
//! micro-kernel in `raw`, with residual additions and resampling fused into their reads and writes. Linear layers, other
//! convolutions and the gradients of attention are products by `gemm`, which Burn uses as well, without zeroing the result
//! and copying it. `raw` holds all unsafe code.
//!
//! The entry point is Burn's backend extension: `NnOps` is implemented for `Flex` and, in `autodiff`, for
//! `Autodiff<Flex>`; the generated dispatch selects between them.
//!
//! Each function returns its input as `Err` where the kernels do not apply: on another backend, for another dtype, or if
//! they are switched off. The caller then composes the operation of Burn's. Without the feature `kernels` or `flex` the
//! kernels never apply.

#![allow(clippy::result_large_err, reason = "the error is the unchanged input, a handle of a few hundred bytes")]

#[cfg(not(all(feature = "flex", feature = "kernels")))]
mod absent;
#[cfg(all(feature = "flex", feature = "kernels"))]
mod cpu;
mod device;
mod switch;
mod types;

#[cfg(not(all(feature = "flex", feature = "kernels")))]
use absent as implementation;
#[cfg(all(feature = "flex", feature = "kernels"))]
use cpu as implementation;

pub(crate) use implementation::{
    activation, attention, cast_to_16_bits, cast_to_f32, concat, conv_bf16, convolution, embedding, group_norm,
    layer_norm, linear, linear_add, linear_bf16, multiplies_bf16, swap_middle,
};
#[cfg(any(test, all(feature = "flex", feature = "kernels")))]
pub(crate) use switch::kernels_enabled;
pub(crate) use types::{ConvInput, Elementwise, WeightShape};

pub use device::is_cpu;
pub use implementation::configure_allocator;
pub use switch::set_kernels;
