//! All unsafe code of the workspace: a product whose operands are read through pointers, and copies into memory that
//! was not written before. Both are safe to call; what they rely on is checked or done in here.

#![allow(unsafe_code, reason = "see the comment at each place")]

mod copy;
mod row_map;
mod tile;
mod vector;

pub use copy::copied;
pub use row_map::{RowMap, map, mapped};
pub use tile::{PANEL, ROWS, Row, product};
pub use vector::{V, load, maximum, store, sum, sum_pairs, update, update_with};
