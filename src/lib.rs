//! dalle2
