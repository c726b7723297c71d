//! dalle2-decoder
