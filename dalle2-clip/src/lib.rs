//! dalle2-clip
