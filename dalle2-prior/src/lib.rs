//! dalle2-prior
