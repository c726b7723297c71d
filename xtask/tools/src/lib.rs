//! Commands of `cargo xtask` that compute with the library. They are a crate apart, so that `cargo xtask check` builds
//! without the library.

pub mod parity;
pub mod random_checkpoint;
