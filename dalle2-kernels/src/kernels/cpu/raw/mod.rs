//! All unsafe code of the workspace: products whose operands are read through pointers, by a crate, by a register tile or
//! by instructions that Rust has no names for, squares that are transposed in registers, results in memory that was not
//! written before, and a word to the allocator. All are safe to call; what they rely on is checked or done in here.

#![allow(unsafe_code, reason = "see the comment at each place")]

pub mod bf16;
mod copy;
mod matmul;
mod memory;
mod row_map;
mod square;
mod swapped;
mod tile;
mod unwritten;
mod vector;

pub use copy::copied;
pub use matmul::{Bias, add_products, product as matrix_product, products as matrix_products};
pub use memory::keep_freed;
pub use row_map::{RowMap, map, mapped};
pub use square::{SQUARE, transpose};
pub use swapped::{columns, joined, swapped};
pub use tile::{PANEL, ROWS, Row, fetch, product};
pub use unwritten::{Rows, Unwritten};
pub use vector::{RUN, V, load, maximum, store, sum, sum_pairs, update, update_with};
