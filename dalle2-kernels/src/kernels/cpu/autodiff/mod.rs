//! The operations with gradients.

mod attention;
mod layout;
mod norms;
mod ops;
mod products;
