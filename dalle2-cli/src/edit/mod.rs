//! Commands that edit images: variations, interpolations, text diffs and inpainting.

pub mod common;
pub mod inpaint;
pub mod interpolate;
mod mask;
pub mod text_diff;
pub mod vary;
