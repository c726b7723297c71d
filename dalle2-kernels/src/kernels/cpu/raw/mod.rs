//! All unsafe code of the workspace: matrix products through pointers, the register tile, AMX and AVX-512 instructions,
//! register transposes, results in uninitialised memory, and allocator settings.
//!
//! Every function is safe to call: preconditions are checked here, with arithmetic that does not wrap.

#![allow(unsafe_code, reason = "see the comment at each place")]

pub(crate) mod bf16;
mod copy;
mod matmul;
mod memory;
mod panel_matmul;
mod permute;
mod row_map;
mod transpose;
mod uninit;
mod vector;
#[cfg(test)]
mod wrapping_tests;

pub(crate) use copy::copy_and_map;
pub(crate) use matmul::{Bias, add_products, product as matrix_product, products as matrix_products};
pub use memory::configure_allocator;
pub(crate) use panel_matmul::{PANEL, ROWS, Row, prefetch, product};
pub(crate) use permute::{columns, concat, swap_middle};
pub(crate) use row_map::{RowMap, map_rows, map_rows_in_place};
pub(crate) use transpose::{BLOCK_SIDE, transpose};
pub(crate) use uninit::{Rows, UninitRows};
pub(crate) use vector::{SUM_BLOCK, V, load, maximum, store, sum, sum_pairs, update, update_with};
