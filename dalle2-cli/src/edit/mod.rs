//! Manipulations of images, and what they share.

pub mod args;
pub mod inpaint;
pub mod interpolate;
pub mod text_diff;
pub mod vary;
